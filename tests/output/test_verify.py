"""`darkroom verify` finds what breaks the row contract."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.job_record import claim
from jobs.planning.plan import make_plan
from jobs.planning.survey import make_survey
from jobs.verification.verify import verify_output
from schemas.errors import DarkroomError, RefusedError, SpecError
from schemas.spec.job_spec import JobSpec
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
    *({"row_id": f"r{i}", "prompt": f"p{i}", "num_inference_steps": 1} for i in range(5)),
    {"row_id": "bad", "prompt": None},
    {"row_id": "two", "prompt": "x", "num_inference_steps": 1, "num_images_per_prompt": 2},
]


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A finished job of three parts."""
    spec = job_spec(write_rows(tmp_path / "in.parquet", ROWS), tmp_path / "out", batching={"shard_rows": 3})
    plan, findings = make_plan(make_survey(spec))
    output = str(tmp_path / "out")
    claim(open_output(output), plan, findings)
    make(spec)
    return spec


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


def swap_ids(rows: list[Record]) -> list[Record]:
    return [rows[0] | {"row_id": "r1"}, rows[1] | {"row_id": "r0"}, *rows[2:]]


def wrong_image(rows: list[Record]) -> list[Record]:
    return [rows[0] | {"image": rows[1]["image"]}, *rows[1:]]


def set_first(**values: Any) -> Callable[[list[Record]], list[Record]]:
    return lambda rows: [rows[0] | values, *rows[1:]]


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
    ],
)
def test_each_breach_of_the_contract_is_found(
    spec: JobSpec, change: Callable[[list[Record]], list[Record]], found: str
) -> None:
    """And named with its part and row."""
    rewrite(spec, 0, change)

    with pytest.raises(DarkroomError, match=found) as raised:
        printed_by_verify(spec)
    assert "train-00000-of-00003" in str(raised.value)


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
    spec = job_spec(write_rows(tmp_path / "in.parquet", ROWS[:2]), tmp_path / "out", output=output)
    plan, findings = make_plan(make_survey(spec))
    claim(open_output(spec.output.path), plan, findings)
    make(spec)
    assert "2 images decode" in printed_by_verify(spec)

    next((tmp_path / "out" / "images").rglob("*.png")).unlink()

    with pytest.raises(DarkroomError, match="an image that cannot be opened"):
        printed_by_verify(spec)


@pytest.fixture
def deep(tmp_path: Path) -> JobSpec:
    """A finished job of two parts: images with depth maps, and one whose first step is kept."""
    steps = {"num_inference_steps": 1}
    rows = [
        *({"row_id": f"d{i}", "task": "ldm3d", "prompt": "x"} for i in range(2)),
        {"row_id": "chain", "task": "twice", "prompt": "x"},
    ]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        models={"deep": {"checkpoint": "demo:ldm3d-4c"}, "sd": {"checkpoint": "demo:sd"}},
        routes={
            "ldm3d": {"model": "deep", **steps},
            "twice": {"task": "text2img", "model": "sd", **steps, "then": ["img2img"], "keep_steps": True},
            "img2img": {"model": "sd", "strength": 1.0, **steps},
        },
        default_route="ldm3d",
    )
    plan, findings = make_plan(make_survey(spec))
    claim(open_output(spec.output.path), plan, findings)
    make(spec)
    return spec


def eight_bits(rows: list[Record]) -> list[Record]:
    """A depth map that has lost half of its bits, with a checksum that fits it."""
    data = encoded(Image.new("L", (64, 64), 100))["bytes"]
    depth = {"bytes": data, "path": "depth.png"}
    return set_first(depth=depth, depth_sha256=hashlib.sha256(data).hexdigest())(rows)


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        (0, set_first(depth=None), "'d0' has no depth map; ldm3d gives one"),
        (0, set_first(depth={"bytes": b"", "path": "x"}), "'d0' has a depth map that cannot be opened"),
        (0, set_first(depth_sha256="0" * 64), "'d0' has a depth map with another checksum"),
        (0, eight_bits, "'d0' has a depth map of 64x64 and mode L, not 64x64 and I;16"),
        (
            0,
            set_first(status="failed", error_code="x", image=None),
            "no image, but has a depth map or step images",
        ),
        (1, set_first(depth=drawn_image()), "'chain' has a depth map; img2img gives none"),
        (1, set_first(step_images=None), "'chain' has 0 step_images, not 1"),
        (1, set_first(step_images=[{"bytes": b"", "path": "x"}]), "an image of step 1 that cannot be opened"),
    ],
)
def test_depth_maps_and_kept_steps_are_held_to_the_contract_too(
    deep: JobSpec, part: int, change: Callable[[list[Record]], list[Record]], found: str
) -> None:
    """Whole, they are verified; each breach is found."""
    assert printed_by_verify(deep).endswith("verified\n")

    rewrite(deep, part, change)

    with pytest.raises(DarkroomError, match=found):
        printed_by_verify(deep)


def test_a_changed_input_proves_nothing(spec: JobSpec, tmp_path: Path) -> None:
    """Without the planned input there is nothing to hold the output against."""
    write_rows(tmp_path / "in.parquet", [*ROWS, {"row_id": "new", "prompt": "x", "image": drawn_image()}])

    with pytest.raises(DarkroomError, match="has changed since the job was planned"):
        printed_by_verify(spec)


def test_a_folder_without_a_job_is_said_to_be_none(tmp_path: Path) -> None:
    """Exit code 2, with the name of what is missing."""
    with pytest.raises(SpecError, match=r"is not a darkroom output: there is no _darkroom/job\.json"):
        verify_output(str(tmp_path), Console(file=io.StringIO()))
