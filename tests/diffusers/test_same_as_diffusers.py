"""What darkroom makes is what a plain diffusers call with the row's seed makes."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.parity.plain_diffusers import LEVELS, Values, reference
from tests.support.in_process import (
    Made,
    Record,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    mask,
    write_rows,
)

IMG2IMG = {"task": "img2img", "prompt": "a hill", "seed": 9, "image": drawn_image()}
INPAINT = {"task": "inpaint", "prompt": "a moon", "seed": 2, "image": drawn_image(), "mask_image": mask()}
TEXT2IMG = {"task": "text2img", "prompt": "a fox", "seed": 7}

ROWS: list[Record] = [
    TEXT2IMG | {"row_id": "plain"},
    TEXT2IMG | {"row_id": "seed-only", "seed": 8},
    TEXT2IMG | {"row_id": "negative", "negative_prompt": "text"},
    TEXT2IMG | {"row_id": "empty-negative", "negative_prompt": ""},
    TEXT2IMG | {"row_id": "guided", "guidance_scale": 2.5},
    TEXT2IMG | {"row_id": "unguided", "guidance_scale": 1.0},
    TEXT2IMG | {"row_id": "steps", "num_inference_steps": 4},
    TEXT2IMG | {"row_id": "earlier-layer", "clip_skip": 1},
    TEXT2IMG | {"row_id": "wide", "height": 64, "width": 96},
    TEXT2IMG | {"row_id": "euler", "scheduler": "EulerDiscreteScheduler"},
    TEXT2IMG | {"row_id": "ddim", "scheduler": "DDIMScheduler", "eta": 0.7},
    IMG2IMG | {"row_id": "img", "strength": 0.6},
    IMG2IMG | {"row_id": "img-strong", "strength": 1.0},
    IMG2IMG | {"row_id": "img-odd", "strength": 0.6, "image": drawn_image((70, 90))},
    INPAINT | {"row_id": "in"},
    INPAINT | {"row_id": "in-resized", "height": 48, "width": 96},
    INPAINT | {"row_id": "in-partly", "image": drawn_image(colour="red"), "strength": 0.7},
]


@cache
def references(family: str) -> dict[str, Values]:
    """Every row by plain diffusers."""
    return {row["row_id"]: plain(family, row) for row in ROWS}


def plain(family: str, row: Record) -> Values:
    """The row's image by a plain call of its pipeline, alone."""
    return reference({"model": family, "num_inference_steps": 2} | row)[0]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    """Both kinds of checkpoint."""
    return str(request.param)


@pytest.fixture(scope="module", params=[1, 4, 256], ids=lambda rows: f"{rows}-row-shards")
def made(
    request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    """Every row by darkroom, in shards of this many rows."""
    folder = tmp_path_factory.mktemp("same")
    spec = job_spec(
        write_rows(folder / "rows.parquet", ROWS),
        folder / "out",
        models={"m": {"checkpoint": f"demo:{family}"}},
        routes={
            task: {"model": "m", "num_inference_steps": 2} for task in ("text2img", "img2img", "inpaint")
        },
        batching={"shard_rows": request.param, "max_batch_rows": 5},
    )
    return make(spec)


@pytest.mark.parametrize("row_id", [row["row_id"] for row in ROWS])
def test_a_row_is_what_a_plain_diffusers_call_gives(made: Made, family: str, row_id: str) -> None:
    """Whatever its company and its shard's size, no pixel is more than two levels away."""
    row = made.row(row_id)

    assert row["status"] == "ok", row["error_message"]
    ours = np.asarray(image_of(row), dtype=np.int16)
    expected = references(family)[row_id]
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= LEVELS


def test_rows_that_differ_make_images_that_differ(made: Made) -> None:
    """The comparison above would be worth nothing on a model that ignores its inputs."""
    hashes = {row["row_id"]: row["image_sha256"] for row in made.rows}

    assert len(set(hashes.values())) >= len(ROWS) - 1, hashes


ALIKE: list[Record] = [
    {
        "row_id": f"alike-{i}",
        "task": "text2img",
        "seed": 40 + i,
        "prompt": prompt,
        "negative_prompt": negative,
    }
    for i, (prompt, negative) in enumerate(
        [("a fox", "text"), ("a grey owl at night", "a frame"), ("hills", ""), ("one ring", "two rings")]
    )
]
"""Rows that share one call: they differ in their texts and seeds alone."""


def test_the_texts_of_rows_in_one_call_stay_with_their_rows(family: str, tmp_path: Path) -> None:
    """A second prompt that is missing is the row's own first one, not that of the call's first row."""
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", ALIKE),
        tmp_path / "out",
        models={"m": {"checkpoint": f"demo:{family}"}},
        routes={"text2img": {"model": "m", "num_inference_steps": 2}},
    )

    made = make(spec)

    for row in ALIKE:
        ours = np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16)
        assert np.abs(ours - plain(family, row)).max() <= LEVELS, row["row_id"]


def test_long_prompts_of_rows_in_one_call_stay_with_their_rows(family: str, tmp_path: Path) -> None:
    """Each row's windows, and XL's pooled embedding, are its own: alone it gives the same image."""
    long = [row | {"prompt": f"{row['prompt']} " * 40} for row in ALIKE]
    together, alone = (
        make(
            job_spec(
                write_rows(tmp_path / f"{rows}.parquet", long),
                tmp_path / str(rows),
                models={"m": {"checkpoint": f"demo:{family}"}},
                routes={"text2img": {"model": "m", "num_inference_steps": 2}},
                batching={"shard_rows": rows},
                long_prompts="chunk",
            )
        )
        for rows in (4, 1)
    )

    for row in long:
        ours, own = (
            np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16) for made in (together, alone)
        )
        assert np.abs(ours - own).max() <= LEVELS, row["row_id"]


def test_an_inpainted_image_keeps_its_own_size(tmp_path: Path) -> None:
    """Plain diffusers would resize it to the model's size; a catalogue wants its own size back."""
    row = {
        "row_id": 1,
        "task": "inpaint",
        "prompt": "x",
        "image": drawn_image((80, 48)),
        "mask_image": mask((80, 48)),
    }

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out"))

    assert image_of(made.row(1)).size == (80, 48)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1"])
def test_an_image_of_any_mode_is_taken_for_its_colours(tmp_path: Path, mode: str) -> None:
    """RGBA, left alone, diffusers takes for latents; L it refuses."""
    odd = drawn_image(mode=mode)
    plain = encoded(image_of({"image": odd}))
    rows = [
        {"row_id": name, "task": "img2img", "prompt": "x", "seed": 1, "image": image}
        for name, image in (("odd", odd), ("plain", plain))
    ]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"))

    ours, theirs = (np.asarray(image_of(made.row(name)), dtype=np.int16) for name in ("odd", "plain"))
    assert np.abs(ours - theirs).max() <= LEVELS


def test_a_turned_photograph_is_put_upright(tmp_path: Path) -> None:
    """Cameras write the turn into EXIF; the output has the upright size."""
    image = image_of({"image": drawn_image((96, 64))})
    exif = image.getexif()
    exif[0x0112] = 6
    row = {"row_id": 1, "task": "img2img", "prompt": "x", "image": encoded(image, "JPEG", exif=exif)}

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out"))

    assert image_of(made.row(1)).size == (64, 96)
