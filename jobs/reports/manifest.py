"""`_darkroom/manifest.jsonl`: the parts of a finished job, a line for each."""

import io
import json
from collections.abc import Iterator
from itertools import zip_longest

from actors.storage.output import Output
from jobs.output.parts import Parts, part_index
from schemas.output_layout import MANIFEST, PARTS_FOLDER, ShardNames

MAX_LINE_BYTES = 4096
"""Ten times what a line needs."""


def write_manifest(output: Output, names: ShardNames) -> None:
    """Write the name, size and etag of every part, in the order of the shards."""
    lines = io.BytesIO()
    for stored in output.storage.list(output.uri(PARTS_FOLDER)):
        if part_index(output, names, stored.uri) is not None:
            name = stored.uri.removeprefix(f"{output.path}/")
            line = {"part": name, "size_bytes": stored.size_bytes, "etag": stored.etag}
            lines.write(json.dumps(line).encode() + b"\n")
    output.replace(MANIFEST, lines.getvalue())


def manifest_agrees(output: Output, parts: Parts) -> bool:
    """Whether the manifest has exactly these parts, by name and size; False too if it cannot be read.

    Etags are not compared, because on local disk every part would have to be opened for them.
    """
    try:
        return all(
            part and line == (part.uri, part.size_bytes) for line, part in zip_longest(_lines(output), parts)
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _lines(output: Output) -> Iterator[tuple[str, int]]:
    """(URI, size in bytes) of each part in the manifest."""
    with output.storage.open(output.uri(MANIFEST)) as file:
        while text := file.readline(MAX_LINE_BYTES):
            line = json.loads(text)
            yield output.uri(line["part"]), line["size_bytes"]
