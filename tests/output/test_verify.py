"""`darkroom verify` finds what breaks the row contract."""

import hashlib
import io
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from actors.engine.engine import Engine
from actors.storage.output import open_output
from jobs.in_flight import map_in_flight
from jobs.output.job_record import claim
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from jobs.verification.verify import MAX_SHOWN, verify_output
from schemas.errors import DarkroomError, RefusedError, SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.engines import GreyEngine
from tests.support.in_process import (
    Record,
    drawn_image,
    encoded,
    job_spec,
    make,
    printed_by_verify,
    write_rows,
)

ROWS: list[Record] = [
    {"row_id": "r0", "prompt": "p0", "num_inference_steps": 1},
    {"row_id": "r1", "prompt": "p1", "num_inference_steps": 1, "width": 128, "height": 64},
    *({"row_id": f"r{i}", "prompt": f"p{i}", "num_inference_steps": 1} for i in range(2, 5)),
    {"row_id": "bad", "prompt": None},
    {"row_id": "two", "prompt": "x", "num_inference_steps": 1, "num_images_per_prompt": 2},
]


def finish(spec: JobSpec, engine: Engine | None = None) -> JobSpec:
    """Run the job and record it."""
    claim(open_output(spec.output.path), *make_plan(make_survey(spec)))
    make(spec, engine)
    return spec


def copied(spec: JobSpec, folder: Path) -> JobSpec:
    """The job with a copy of its output."""
    shutil.copytree(spec.output.path, folder / "out")
    return spec.model_copy(update={"output": spec.output.model_copy(update={"path": str(folder / "out")})})


@pytest.fixture(scope="module")
def three_parts(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("three-parts")
    rows = write_rows(folder / "in.parquet", ROWS)
    return finish(job_spec(rows, folder / "out", batching={"shard_rows": 3}))


@pytest.fixture
def spec(three_parts: JobSpec, tmp_path: Path) -> JobSpec:
    """A finished job of three parts."""
    return copied(three_parts, tmp_path)


MANY_ROWS = {"a": 16_500, "b": 30}
"""The rows of two input files: more than verify reads at a time."""


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("many-parts")
    for name, num_rows in MANY_ROWS.items():
        # No row has a prompt: all fail, without an image.
        columns = {"prompt": pa.nulls(num_rows, pa.string()), "model": ["x", "y", "y"] * (num_rows // 3)}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=1_500)
    models = {name: {"checkpoint": "demo:sd"} for name in "xy"}
    spec = job_spec(
        folder / "*.parquet",
        folder / "out",
        models=models,
        routes={"text2img": {"model": "x"}},
        batching={"shard_rows": 1_000},
    )
    return finish(spec, GreyEngine())


@pytest.fixture
def many(many_parts: JobSpec, tmp_path: Path) -> JobSpec:
    """A finished job of two files, two models and many parts, whose rows have no ids of their own."""
    return copied(many_parts, tmp_path)


def rewrite(spec: JobSpec, part: int, change: Callable[[list[Record]], list[Record]]) -> None:
    """Put other rows into a part, as a faulty writer would."""
    path = sorted((Path(spec.output.path) / "data").iterdir())[part]
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def test_a_whole_output_is_verified(spec: JobSpec) -> None:
    """Every row once, every image whole."""
    printed = printed_by_verify(spec)

    assert "7 of 7 input rows have exactly one outcome (6 ok, 0 filtered, 1 failed)" in printed
    assert "7 images decode" in printed
    assert printed.endswith("verified\n")


def test_an_output_of_many_parts_is_verified(many: JobSpec) -> None:
    """Each against the rows of its own file and model, by the ids that come from the file's name."""
    printed = printed_by_verify(many)

    assert "16,530 of 16,530 input rows have exactly one outcome (0 ok, 0 filtered, 16,530 failed)" in printed
    assert "; 19 of 19 parts" in printed
    assert printed.endswith("verified\n")


@pytest.mark.parametrize("part", [0, 9, 18])
def test_a_breach_is_found_in_whichever_part_it_is(many: JobSpec, part: int) -> None:
    """The first, one in the midst, the last: the message shows the first faults and their number."""
    rewrite(many, part, lambda rows: [row | {"row_id": "x"} for row in rows])
    num_rows = [1_000, 1_000, 20][part // 9]

    with pytest.raises(DarkroomError, match=rf"\({num_rows:,} faults\)") as raised:
        printed_by_verify(many)

    assert str(raised.value).count("of the input belongs") == min(num_rows, MAX_SHOWN)


def test_few_items_are_taken_ahead_of_the_results() -> None:
    """The ids of a million parts at once, or what waits for their footers, would need gigabytes."""
    num_taken = count()

    def items() -> Iterator[int]:
        yield from (next(num_taken) for _ in range(100))

    results = map_in_flight(lambda item: item, items(), at_once=4)
    first = next(results)
    num_ahead = next(num_taken)
    rest = [*results]

    assert num_ahead <= 2 * 4 + 1
    assert [first, *rest] == [number for number in range(101) if number != num_ahead]


def swap_ids(rows: list[Record]) -> list[Record]:
    return [rows[0] | {"row_id": "r1"}, rows[1] | {"row_id": "r0"}, *rows[2:]]


def wrong_image(rows: list[Record]) -> list[Record]:
    return [rows[0] | {"image": rows[1]["image"]}, *rows[1:]]


Change = Callable[[list[Record]], list[Record]]


def set_row(number: int, **values: Any) -> Change:
    return lambda rows: [row | values if i == number else row for i, row in enumerate(rows)]


def set_first(**values: Any) -> Change:
    return set_row(0, **values)


def stored(data: bytes, name: str = "image") -> Record:
    """An image as it is stored in a part, with its checksum."""
    return {name: {"bytes": data, "path": "x"}, f"{name}_sha256": hashlib.sha256(data).hexdigest()}


def broken_png() -> bytes:
    """A PNG whose second half is in a chunk without a name."""
    data = encoded(Image.linear_gradient("L"))["bytes"]
    start = data.index(b"IDAT") - 4
    size = int.from_bytes(data[start : start + 4])
    pixels = data[start + 8 : start + 8 + size]
    chunks = [(b"IDAT", pixels[: size // 2]), (b"\0\0\0\0", pixels[size // 2 :]), (b"IEND", b"")]
    return data[:start] + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (swap_ids, "is where row 'r0' of the input belongs"),
        (lambda rows: rows[:-1], "has 2 rows, not 3"),
        (lambda rows: [*rows, rows[-1]], "one row more than the shard has"),
        (lambda rows: [rows[0], *rows], "is where row 'r1' of the input belongs"),
        (wrong_image, "another checksum"),
        (set_first(width=65), "has an image of 64x64, not 65x64"),
        (set_first(image=None), "is ok and has no image"),
        (set_first(status="done"), "has the status 'done'"),
        (set_first(status="failed"), "failed, but has an image or no error_code"),
        (set_first(image_index=1), "has the image_index 1"),
        (set_first(image={"bytes": None, "path": "/nowhere.png"}), "an image that cannot be opened"),
        (set_first(**stored(broken_png())), "an image that cannot be opened: broken PNG file"),
        (set_first(status="failed", error_code="x"), "'r0' failed, but has an image or no error_code"),
        (set_first(status="failed", image=None), "'r0' failed, but has an image or no error_code"),
        (set_first(nsfw=True), "'r0' is ok, and its nsfw is True"),
        (set_first(status="filtered"), "'r0' is filtered, and its nsfw is None"),
        (set_row(2, row_id="r3"), "'r3' is where row 'r2' of the input belongs"),
    ],
)
def test_each_breach_of_the_contract_is_found(spec: JobSpec, change: Change, found: str) -> None:
    """And named with its part and row."""
    rewrite(spec, 0, change)

    with pytest.raises(DarkroomError, match=found) as raised:
        printed_by_verify(spec)
    assert "train-00000-of-00003" in str(raised.value)


def test_a_row_without_its_second_image_is_found(spec: JobSpec) -> None:
    """Its third one does not hide that."""
    rewrite(spec, 2, set_row(1, image_index=2))

    with pytest.raises(DarkroomError, match="'two' has the image_index 2 after 0"):
        printed_by_verify(spec)


def test_a_row_counts_as_filtered_if_its_second_image_is(spec: JobSpec) -> None:
    """Whatever its first one is."""
    withheld = {"status": "filtered", "nsfw": True, "image": None}
    rewrite(spec, 2, set_row(1, **withheld))

    with pytest.raises(DarkroomError, match="its footer says 0 filtered; its rows have 1"):
        printed_by_verify(spec)


@pytest.mark.parametrize(("size", "found"), [((256, 128), ""), ((512, 256), "512x256 pixels are more than")])
def test_an_image_may_have_more_pixels_than_an_input_image_to_a_bound(
    tmp_path: Path, size: tuple[int, int], found: str
) -> None:
    """An upscaler gives four times as many in each direction."""
    path = write_rows(tmp_path / "in.parquet", ROWS[:1])
    limits = {"path": str(path), "max_pixels": 64 * 64}
    spec = finish(job_spec(path, tmp_path / "out", input=limits), GreyEngine())
    data = encoded(Image.new("RGB", size))["bytes"]

    rewrite(spec, 0, set_first(**stored(data), width=size[0], height=size[1]))

    with pytest.raises(DarkroomError, match=found) if found else nullcontext():
        printed_by_verify(spec)


def test_a_missing_part_is_found(spec: JobSpec) -> None:
    """The message says what to do."""
    next((Path(spec.output.path) / "data").glob("train-00001-*")).unlink()

    with pytest.raises(DarkroomError, match="train-00001-of-00003 is missing: run again"):
        printed_by_verify(spec)


def test_a_part_under_another_parts_name_is_found(spec: JobSpec) -> None:
    """Its footer says whose it is."""
    first, second, _ = sorted((Path(spec.output.path) / "data").iterdir())
    second.write_bytes(first.read_bytes())

    with pytest.raises(DarkroomError, match="train-00001-of-00003 says it is shard 'train-00000-of-00003'"):
        printed_by_verify(spec)


def test_a_flipped_bit_is_found(spec: JobSpec) -> None:
    """By the page's checksum, before the image is looked at."""
    path = sorted((Path(spec.output.path) / "data").iterdir())[0]
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"IDAT") + 40] ^= 1
    path.write_bytes(damaged)

    with pytest.raises(DarkroomError, match="train-00000-of-00003 cannot be read"):
        printed_by_verify(spec)


@pytest.mark.parametrize("name", ["train-00003-of-00003", "train-00000-of-00004"])
def test_a_part_that_this_job_cannot_have_is_refused(spec: JobSpec, name: str) -> None:
    """One shard more than there are, or one of another number of shards."""
    (Path(spec.output.path) / "data" / f"{name}.parquet").write_bytes(b"")

    with pytest.raises(RefusedError, match=f"{name}.parquet is a part of another job: this job has 3 parts"):
        printed_by_verify(spec)


def test_images_of_their_own_are_read_too(tmp_path: Path) -> None:
    """With `images: files`, an object that is gone is a breach."""
    output = {"path": str(tmp_path / "out"), "images": "files"}
    rows = write_rows(tmp_path / "in.parquet", ROWS[:1] + ROWS[2:3])
    spec = finish(job_spec(rows, tmp_path / "out", output=output), GreyEngine())
    assert "2 images decode" in printed_by_verify(spec)

    next((tmp_path / "out" / "images").rglob("*.png")).unlink()

    with pytest.raises(DarkroomError, match="an image that cannot be opened"):
        printed_by_verify(spec)


@pytest.fixture(scope="module")
def two_parts(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("two-parts")
    steps = {"num_inference_steps": 1}
    rows = [
        *({"row_id": f"d{i}", "task": "ldm3d", "prompt": "x"} for i in range(2)),
        {"row_id": "flat", "task": "flat", "prompt": "x"},
        {"row_id": "chain", "task": "thrice", "prompt": "x"},
    ]
    spec = job_spec(
        write_rows(folder / "in.parquet", rows),
        folder / "out",
        models={"deep": {"checkpoint": "demo:ldm3d-4c"}, "sd": {"checkpoint": "demo:sd"}},
        routes={
            "ldm3d": {"model": "deep", **steps},
            "flat": {"task": "ldm3d", "model": "deep", **steps, "then": ["img2img"]},
            "thrice": {"task": "text2img", "model": "sd", **steps, "then": ["img2img"] * 2}
            | {"keep_steps": True},
            "img2img": {"model": "sd", "strength": 1.0, **steps},
        },
        default_route="ldm3d",
    )
    return finish(spec)


@pytest.fixture
def deep(two_parts: JobSpec, tmp_path: Path) -> JobSpec:
    """A finished job of two parts: images with depth maps, one of which a chain has made flat, and an image
    whose first two steps are kept."""
    return copied(two_parts, tmp_path)


def depth_map(mode: str, size: tuple[int, int]) -> Record:
    """A depth map of another kind, with a checksum that fits it."""
    return stored(encoded(Image.new(mode, size, 100))["bytes"], "depth")


STEP = drawn_image()
CUT = {"bytes": STEP["bytes"][: STEP["bytes"].index(b"IDAT") + 40], "path": "x"}
"""An image whose header is whole and whose pixels are not."""


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        (0, set_first(depth=None), "'d0' has no depth map; ldm3d gives one"),
        (0, set_first(depth={"bytes": b"", "path": "x"}), "'d0' has a depth map that cannot be opened"),
        (0, set_first(depth_sha256="0" * 64), "'d0' has a depth map with another checksum"),
        (0, set_first(**depth_map("L", (64, 64))), "'d0' has a depth map of 64x64 and mode L, not 64x64"),
        (0, set_first(**depth_map("I;16", (64, 32))), "'d0' has a depth map of 64x32 and mode I;16, not"),
        (
            0,
            set_first(status="failed", error_code="x", image=None),
            "no image, but has a depth map or step images",
        ),
        (0, set_first(step_images=[STEP]), "'d0' has 1 step_images, not 0"),
        (0, set_row(2, depth=STEP), "'flat' has a depth map; img2img gives none"),
        (1, set_first(depth=STEP), "'chain' has a depth map; img2img gives none"),
        (1, set_first(step_images=None), "'chain' has 0 step_images, not 2"),
        (1, set_first(step_images=[STEP] * 3), "'chain' has 3 step_images, not 2"),
        (1, set_first(step_images=[{"bytes": b"", "path": "x"}, STEP]), "image of step 1 that cannot be op"),
        (1, set_first(step_images=[STEP, CUT]), "an image of step 2 that cannot be opened"),
    ],
)
def test_depth_maps_and_kept_steps_are_held_to_the_contract_too(
    deep: JobSpec, part: int, change: Change, found: str
) -> None:
    """Whole, they are verified; each breach is found."""
    assert printed_by_verify(deep).endswith("verified\n")

    rewrite(deep, part, change)

    with pytest.raises(DarkroomError, match=found):
        printed_by_verify(deep)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("state", ["is gone", "has changed"])
def test_a_changed_input_proves_nothing(tmp_path: Path, name: str, state: str) -> None:
    """Without the planned input there is nothing to hold the output against."""
    for each in "ab":
        write_rows(tmp_path / f"{each}.parquet", [{"row_id": each, "prompt": "a fox"}])
    spec = finish(job_spec(tmp_path / "*.parquet", tmp_path / "out"), GreyEngine())
    changed = tmp_path / f"{name}.parquet"

    if state == "is gone":
        changed.unlink()
    else:
        changed.write_bytes(changed.read_bytes().replace(b"fox", b"cat"))

    with pytest.raises(DarkroomError, match=f"{changed} {state} since the job was planned"):
        printed_by_verify(spec)


def test_a_folder_without_a_job_is_said_to_be_none(tmp_path: Path) -> None:
    """Exit code 2, with the name of what is missing."""
    with pytest.raises(SpecError, match=r"is not a darkroom output: there is no _darkroom/job\.json"):
        verify_output(str(tmp_path), Console(file=io.StringIO()))
