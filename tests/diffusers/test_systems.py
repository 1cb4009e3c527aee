"""Every system's row is what a plain diffusers call with the row's seed makes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import (
    DEPTH,
    DEPTH_LEVELS,
    IMAGE,
    LEVELS,
    MASK,
    MODELS,
    ROUTES,
    ROWS,
    distances,
    expected,
    reference,
    row,
    system_of,
)
from schemas.systems.system_table import SYSTEMS
from tests.support.in_process import (
    Made,
    Record,
    encoded,
    image_of,
    job_spec,
    loaded_models,
    make,
    write_rows,
)


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """The models of this file's jobs."""
    return loaded_models()


@pytest.fixture(scope="module", params=[3, 256], ids=lambda rows: f"{rows}-row-shards")
def made(
    models: ModelCache, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """All rows mixed in one job."""
    folder = tmp_path_factory.mktemp("systems")
    path = write_rows(folder / "rows.parquet", ROWS)
    shards = {"shard_rows": request.param}
    spec = job_spec(path, folder / "out", models=MODELS, routes=ROUTES, batching=shards)
    return make(spec, DiffusersEngine(models, spec))


@pytest.mark.parametrize("row_id", [each["row_id"] for each in ROWS])
def test_a_row_of_any_system_is_what_plain_diffusers_gives(made: Made, row_id: str) -> None:
    """Mixed in one job with all others: images within two levels, depth within 1/4096 of its range."""
    picture, depth = distances(made.row(row_id), expected(row_id))

    assert picture <= LEVELS
    assert depth <= DEPTH_LEVELS


TURNED = {"image": encoded(image_of({"image": IMAGE}).rotate(90))}
SMALL = {"image": encoded(image_of(TURNED).resize((32, 32)))}
UPSIDE_DOWN = {"mask_image": encoded(image_of({"image": MASK}).rotate(-90).convert("L"))}
OTHER_DEPTH = {
    "depth_map": encoded(Image.fromarray(np.asarray(Image.open(io.BytesIO(DEPTH["bytes"]))).T[::-1]))
}
OTHERS: dict[str, Record] = {
    "sd-img": TURNED,
    "sd-in": TURNED | UPSIDE_DOWN,
    "sd-crop": TURNED | UPSIDE_DOWN,
    "nine": UPSIDE_DOWN,
    "depth": TURNED,
    "depth-given": OTHER_DEPTH,
    "varied": TURNED,
    "up": SMALL,
    "latent-up": TURNED,
    "ldm3d-up": TURNED | OTHER_DEPTH,
    "xl-img": TURNED,
    "xl-in": UPSIDE_DOWN,
    "refined": TURNED,
}
"""Other images for some of ROWS: the two rows can share a call."""


def test_the_images_of_rows_in_one_call_stay_with_their_rows(models: ModelCache, tmp_path: Path) -> None:
    """Images, masks and depth maps: no row gets those of the call's first row, nor of its last."""
    bases = [each for each in ROWS if each["row_id"] in OTHERS]
    others = [each | OTHERS[each["row_id"]] | {"row_id": f"{each['row_id']}-other"} for each in bases]
    path = write_rows(tmp_path / "in.parquet", [*bases, *others])

    spec = job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES)
    made = make(spec, DiffusersEngine(models, spec))

    plain = {each["row_id"]: expected(each["row_id"]) for each in bases}
    plain |= {each["row_id"]: reference(each) for each in others}
    found = {row_id: distances(made.row(row_id), image) for row_id, image in plain.items()}
    assert len(found) == 2 * len(OTHERS)
    far = {name: each for name, each in found.items() if each[0] > LEVELS or each[1] > DEPTH_LEVELS}
    assert far == {}


def test_each_system_of_the_table_is_tried() -> None:
    """A system that nobody tries is a system that nobody has."""
    tried = [system_of(each) for each in ROWS]

    assert {(left.family, left.task) for left in SYSTEMS if left not in tried} <= {("safe", "safe")}


def test_a_depth_map_without_depth_fails_alone(tmp_path: Path) -> None:
    """diffusers would scale it by its range, which is zero, and give NaN."""
    flat = encoded(Image.fromarray(np.full((64, 64), 500, np.uint16)))
    rows = [
        row("flat", "depth2img", "depth2img", image=IMAGE, depth_map=flat),
        row("ramp", "depth2img", "depth2img", image=IMAGE, depth_map=DEPTH),
    ]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        models={"depth2img": {"checkpoint": "demo:depth2img"}},
        routes={"depth2img": {"model": "depth2img", "num_inference_steps": 2}},
        default_route="depth2img",
    )

    made = make(spec)

    assert [each["error_code"] or each["status"] for each in made.rows] == ["constant_depth", "ok"]
