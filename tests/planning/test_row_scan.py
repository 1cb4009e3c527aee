"""Facts about the plan's pass over files of more rows than it reads together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.images.encoding import TYPICAL_BYTES_PER_PIXEL, TYPICAL_DEPTH_BYTES_PER_PIXEL
from actors.inputs.column_reader import BATCH_ROWS
from jobs.planning.plan import expected_bytes, make_plan
from jobs.planning.row_ids import MAX_REPEATED
from jobs.planning.row_scan import RouteCount
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import paper_checkpoint
from tests.support.in_process import job_spec

NUM_ROWS = 2 * BATCH_ROWS + 132
TASKS = ("text2img", "small", "poster")
"""Two routes of one model, and one of another; rows take them in turns."""
MODEL_OF = {"text2img": "sd", "small": "sd", "poster": "xl"}
SAME_ID = {
    BATCH_ROWS - 1: 3,
    BATCH_ROWS: 4,
    BATCH_ROWS + 1: 5,
    2 * BATCH_ROWS - 1: BATCH_ROWS - 2,
    2 * BATCH_ROWS: 4,
    NUM_ROWS - 1: 2 * BATCH_ROWS + 1,
}
"""Rows that have an earlier row's id, on both sides of each border between two batches."""
BAD = (2, BATCH_ROWS, BATCH_ROWS + 7, 2 * BATCH_ROWS + 9)
"""Rows with a height that does not fit. One of them has an earlier row's id too."""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A job of two models and three routes over tmp_path/rows."""
    (tmp_path / "rows").mkdir()
    folders = {
        "sd": paper_checkpoint(tmp_path / "sd"),
        "xl": paper_checkpoint(tmp_path / "xl", pipeline="StableDiffusionXLPipeline", sample_size=128),
    }
    return job_spec(
        tmp_path / "rows",
        tmp_path / "out",
        models={name: {"checkpoint": str(folder)} for name, folder in folders.items()},
        routes={
            "text2img": {"model": "sd"},
            "small": {"task": "text2img", "model": "sd", "height": 256, "width": 384},
            "poster": {"task": "text2img", "model": "xl", "height": 768},
        },
    )


def write(spec: JobSpec, name: str, **columns: list[Any]) -> Path:
    """Write one file of the job's input, and return its path."""
    path = Path(str(spec.input.path)) / name
    pq.write_table(pa.table(columns), path, row_group_size=10_000)
    return path


def index_in_model(row: int) -> int:
    """How many rows before this one go to the same model."""
    model = MODEL_OF[TASKS[row % 3]]
    return sum(MODEL_OF[TASKS[i % 3]] == model for i in range(row))


def test_rows_of_later_batches_are_told_by_their_number_in_the_file(spec: JobSpec) -> None:
    """Bad rows and repeated ids, at the borders of batches and over two files; progress counts rows once."""
    ids = [f"r{SAME_ID.get(i, i)}" for i in range(NUM_ROWS)]
    first = write(
        spec,
        "1.parquet",
        row_id=ids,
        prompt=["p"] * NUM_ROWS,
        task=[TASKS[i % 3] for i in range(NUM_ROWS)],
        height=[61 if i in BAD else None for i in range(NUM_ROWS)],
    )
    write(
        spec,
        "2.parquet",
        row_id=["x", "r9", "y"],
        prompt=["p"] * 3,
        task=["small", "text2img", "poster"],
        height=pa.array([None] * 3, pa.int64()),
    )
    reported: list[int] = []

    plan, findings = make_plan(make_survey(spec), reported.append)

    repeated: dict[str, list[int]] = {"sd": [], "xl": []}
    for row in SAME_ID:
        repeated[MODEL_OF[TASKS[row % 3]]].append(index_in_model(row))
    assert [file.repeated for file in plan.files] == [repeated, {"sd": [1]}]
    assert findings.num_bad == {"duplicate_row_id": len(SAME_ID), "invalid_size": len(BAD)}
    assert [(bad.row, bad.row_id) for bad in findings.bad_rows if bad.problem.code == "invalid_size"] == [
        (row, ids[row]) for row in BAD
    ]
    only_repeated = [row for row in SAME_ID if row not in BAD]
    assert [
        (bad.row, bad.problem.message) for bad in findings.bad_rows if bad.problem.code != "invalid_size"
    ] == [
        *((row, f"row {SAME_ID[row]} of {first} has the same id") for row in only_repeated),
        (1, f"row 9 of {first} has the same id"),
    ]
    assert (sum(reported), max(reported)) == (NUM_ROWS + 3, BATCH_ROWS)


def test_a_row_to_inpaint_is_counted_with_the_size_that_it_asks_for(spec: JobSpec) -> None:
    """Where it has only one side, or none, the input image decides."""
    write(
        spec,
        "1.parquet",
        prompt=["p"] * 4,
        task=["inpaint"] * 4,
        image=pa.array([{"bytes": b"x", "path": None}] * 4, IMAGE_TYPE),
        mask_image=pa.array([{"bytes": b"x", "path": None}] * 4, IMAGE_TYPE),
        height=[None, 256, 256, None],
        width=[None, 64, None, 64],
    )
    asking = JobSpec.model_validate(
        spec.model_dump() | {"routes": {"inpaint": {"model": "sd"}}, "default_route": "inpaint"}
    )

    _, findings = make_plan(make_survey(asking))

    assert [(count.size, count.rows, count.pixels) for count in findings.counts] == [
        ("64x256", 1, 64 * 256),
        ("input", 3, 512 * (512 + 256 + 64)),
    ]


def test_the_steps_of_a_chain_count_with_the_sizes_of_their_images(spec: JobSpec) -> None:
    """Only the last is stored unless steps are kept. Where the input decides, a model's own size counts."""
    folder = Path(spec.output.path).parent
    upscaler = paper_checkpoint(folder / "x4", pipeline="StableDiffusionUpscalePipeline", channels=7)
    rgbd = paper_checkpoint(folder / "rgbd", pipeline="StableDiffusionLDM3DPipeline")
    chained = {
        "large": {"task": "text2img", "model": "sd", "height": 64, "width": 96, "then": ["upscale"]},
        "upscale": {"model": "x4"},
        "redrawn": {"task": "img2img", "model": "sd", "then": ["upscale", "fill"]},
        "fill": {"task": "inpaint", "model": "sd", "height": 40, "width": 48},
        "deep": {"task": "ldm3d", "model": "rgbd", "height": 64, "width": 64},
    }
    chained |= {f"kept-{name}": chained[name] | {"keep_steps": True} for name in ("large", "redrawn")}
    models = {"x4": {"checkpoint": str(upscaler)}, "rgbd": {"checkpoint": str(rgbd)}}
    chains = JobSpec.model_validate(
        spec.model_dump()
        | {"models": spec.model_dump()["models"] | models, "routes": chained, "default_route": "large"}
    )
    tasks = ["large", "kept-large", "redrawn", "kept-redrawn", "deep"]
    image = pa.array([{"bytes": b"x", "path": None}] * 5, IMAGE_TYPE)
    images = [1, 2, 1, 3, 4]
    write(
        spec,
        "1.parquet",
        prompt=["p"] * 5,
        task=tasks,
        image=image,
        mask_image=image,
        num_images_per_prompt=images,
    )

    plan, findings = make_plan(make_survey(chains))

    large, four_times, redrawn, filled = 64 * 96, 256 * 384, 512 * 512, 40 * 48
    assert {count.route: (count.pixels, count.depth_pixels) for count in findings.counts} == {
        "large": (four_times, 0),
        "kept-large": (2 * (large + four_times), 0),
        "redrawn": (filled, 0),
        "kept-redrawn": (3 * (redrawn + 16 * redrawn + filled), 0),
        "deep": (4 * 64 * 64, 4 * 64 * 64),
    }
    steps = {count.route: (count.size, *count.then) for count in findings.counts}
    assert steps["large"] == ("96x64", ("upscale", "x4", "384x256"))
    assert steps["redrawn"] == ("input", ("upscale", "x4", "4 x input"), ("fill", "sd", "48x40"))
    in_png = sum(count.pixels for count in findings.counts) * TYPICAL_BYTES_PER_PIXEL["png"]
    in_depth = 4 * 64 * 64 * TYPICAL_DEPTH_BYTES_PER_PIXEL
    assert expected_bytes(findings, plan.job) == int(in_png + in_depth)


def test_images_and_pixels_are_those_of_the_rows_that_can_be_generated(spec: JobSpec) -> None:
    """Each row's own number and size; a null means the route's, and the checkpoint's where it has none."""
    write(
        spec,
        "1.parquet",
        prompt=["p", "p", "p", "p", "p", None],
        task=["text2img", "small", "small", "poster", "poster", "text2img"],
        num_images_per_prompt=[5, None, 2, 3, 4, 64],
        height=[None, None, 320, None, 1024, None],
    )

    _, findings = make_plan(make_survey(spec))

    def count(route: str, model: str, width: int, height: int, images: int) -> RouteCount:
        pixels = images * width * height
        size = f"{width}x{height}"
        return RouteCount(route=route, model=model, size=size, rows=1, images=images, pixels=pixels)

    assert tuple(replace(each, work=()) for each in findings.counts) == (
        count("poster", "xl", 1024, 1024, 4),
        count("poster", "xl", 1024, 768, 3),
        count("small", "sd", 384, 256, 1),
        count("small", "sd", 384, 320, 2),
        count("text2img", "sd", 512, 512, 5),
    )


def test_as_many_rows_as_allowed_may_have_an_earlier_rows_id(spec: JobSpec) -> None:
    """Each fails alone, in a file of two batches."""
    ids = [i % MAX_REPEATED for i in range(2 * MAX_REPEATED)]
    write(spec, "1.parquet", row_id=ids, prompt=["p"] * len(ids), task=["small"] * len(ids))

    plan, findings = make_plan(make_survey(spec))

    assert findings.num_bad == {"duplicate_row_id": MAX_REPEATED}
    assert plan.files[0].repeated == {"sd": [*range(MAX_REPEATED, 2 * MAX_REPEATED)]}
