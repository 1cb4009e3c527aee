"""With `batching.exact` every row has the bits of a plain diffusers call."""

from pathlib import Path

import pytest

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import (
    MODELS,
    ROUTES,
    ROWS,
    VARIED,
    distances,
    expected,
    reference,
    row,
)
from tests.support.in_process import Made, Record, job_spec, loaded_models, make, model_cache, write_rows

# What Safe says of every call without guidance.
pytestmark = pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning")

MIXED = [*ROWS, *VARIED[::4]]


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """The models of this file's jobs."""
    return loaded_models()


def made_exactly(models: ModelCache, folder: Path, rows: list[Record], **batching: int) -> Made:
    path = write_rows(folder / "rows.parquet", rows)
    exactly = {"exact": True} | batching
    spec = job_spec(path, folder / "out", models=MODELS, routes=ROUTES, batching=exactly)
    return make(spec, DiffusersEngine(models, spec))


@pytest.mark.parametrize("shard_rows", [3, 256])
def test_every_row_of_every_system_has_the_bits_of_a_plain_call(
    models: ModelCache, tmp_path: Path, shard_rows: int
) -> None:
    """Images and depth maps alike, mixed in one job with all others, whatever its shards are."""
    made = made_exactly(models, tmp_path, MIXED, shard_rows=shard_rows)

    found = {each["row_id"]: distances(made.row(each["row_id"]), expected(each["row_id"])) for each in MIXED}
    assert found == dict.fromkeys(found, (0, 0))


def test_rows_that_could_share_a_call_have_one_each(models: ModelCache, tmp_path: Path) -> None:
    """Equal parameters tempt nobody, and the third image of a row is that of the third seed."""
    rows = [row(f"sd-{seed}", "sd", "text2img", seed=seed) for seed in range(4)]

    made = made_exactly(models, tmp_path, [*rows, rows[1] | {"row_id": "three", "num_images_per_prompt": 3}])

    for seed, values in enumerate(rows):
        assert distances(made.row(f"sd-{seed}"), reference(values)) == (0, 0)
    assert [made.row("three", j)["image_sha256"] for j in range(3)] == [
        made.row(f"sd-{seed}")["image_sha256"] for seed in (1, 2, 3)
    ]


@pytest.mark.parametrize(("kind", "exact"), [("sd", True), ("ldm3d", False), ("ldm3d", True)])
def test_nothing_is_merged(tmp_path: Path, kind: str, exact: bool) -> None:
    """No module is asked for more than one call's rows; nor those of LDM3D's first VAE without `exact`, whose
    depth has two bytes, of which the high one is rounded for itself."""
    task = "text2img" if kind == "sd" else kind
    rows = [row(f"{seed}", kind, task, seed=seed) for seed in range(3)]
    path = write_rows(tmp_path / "rows.parquet", rows)
    spec = job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES, batching={"exact": exact})
    models = model_cache(spec)
    sizes: list[int] = []
    unet = models.get(kind).components["unet"]
    handle = unet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))

    made = make(spec, DiffusersEngine(models, spec))

    handle.remove()
    # With guidance a call's one row is two of the UNet's; PNDM asks once more than it has steps.
    assert sizes == [2] * 5 * 3
    assert [distances(made.row(each["row_id"]), reference(each)) for each in rows] == [(0, 0)] * 3
