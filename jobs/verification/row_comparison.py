"""Two results of one input row compared: their values, their images, and what they were made with."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from PIL import Image

from actors.images.input_images import FORMATS
from actors.parts.part import Record
from actors.storage.output import Output
from jobs.output.stored_images import read_image
from schemas.output_layout import MODELS_KEY, VERSIONS_KEY
from schemas.wording.printable import shortened

IMAGE_COLUMNS = ("image", "depth", "step_images")
HASH_COLUMNS = ("image_sha256", "depth_sha256")


def with_images_read(record: Record, output: Output) -> Record:
    """The record with the bytes of its images in place of their structs: a list for each column of images."""
    read = dict(record)
    for name in (name for name in IMAGE_COLUMNS if name in record):
        structs = record[name] if isinstance(record[name], list) else [record[name]]
        read[name] = [
            read_image(output, struct["path"]) if struct["bytes"] is None else struct["bytes"]
            for struct in structs
            if struct is not None
        ]
    return read


def compare_records(stored: Sequence[Record], made: Sequence[Record]) -> Iterator[str]:
    """How a row's new records differ from the stored ones, a line each; nothing where they are equal.

    Both have their images read. Columns that only the stored ones have are not compared.
    """
    if len(stored) != len(made):
        yield f"the row has {len(stored)} records, and {len(made)} now"
    for old, new in zip(stored, made, strict=False):
        of = f"image {old['image_index']}: " if len(stored) > 1 else ""
        for name, value in new.items():
            if name in IMAGE_COLUMNS:
                for number, (before, now) in enumerate(zip_longest(old[name], value)):
                    which = f"{name} {number}" if name == "step_images" else name
                    if before != now:
                        yield f"{of}`{which}` {image_difference(before, now)}"
            elif name not in HASH_COLUMNS and old[name] != value:
                yield f"{of}`{name}` was {_shown(old[name])}, is now {_shown(value)}"


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


def image_difference(before: bytes | None, now: bytes | None) -> str:
    """How two image files differ that are not equal byte for byte."""
    if before is None or now is None:
        return "was there, and is not now" if now is None else "was not there, and is now"
    old, new = _pixels(before), _pixels(now)
    if old.shape != new.shape:
        return f"had the size {_size(old)}, and has {_size(new)} now"
    distances = np.abs(old - new)
    if not distances.any():
        return "has the same pixels in a file of other bytes: another version wrote it"
    differing = distances.reshape(*distances.shape[:2], -1).any(axis=2)
    levels = 65_535 if int(old.max()) > 255 else 255
    share = f"{int(differing.sum()):,} of {differing.size:,} pixels"
    return f"differs in {share}, by up to {int(distances.max()):,} of {levels:,} levels"


def _pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return np.asarray(image).astype(np.int64)


def _size(pixels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def environment_differences(
    stored: Mapping[bytes, bytes], present: Mapping[bytes, str], revisions: Mapping[str, str]
) -> Iterator[str]:
    """What a part was made with that is another now: versions of libraries and checkpoints, a line each.

    `stored`: the part's footer; `present`: the entries that a part would have now; `revisions`: the revisions
    that checkpoints have now, by the model's name.
    """
    versions, models = (json.loads(stored.get(key, b"{}")) for key in (VERSIONS_KEY, MODELS_KEY))
    for name, version in json.loads(present[VERSIONS_KEY]).items():
        if versions.get(name) != version:
            yield f"{name} was {versions.get(name, 'not recorded')}, is now {version}"
    for name, revision in revisions.items():
        if (before := models.get(name, "not recorded")) != revision:
            yield f"the checkpoint of model `{name}` was {before}, is now {revision}"
