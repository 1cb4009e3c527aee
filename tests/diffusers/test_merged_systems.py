"""Rows of all systems, no two of which could share a plain call, share module calls and stay the same."""

import pytest

from actors.engine.batching.merged_modules import CallCount
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import (
    DEPTH_LEVELS,
    LEVELS,
    MODELS,
    ROUTES,
    VARIED,
    distances,
    expected,
)
from tests.support.in_process import Made, job_spec, loaded_models, make, write_rows

# What Safe says of every call without guidance.
pytestmark = pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning")

Merged = tuple[Made, dict[str, CallCount]]


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """The models of this file's jobs."""
    return loaded_models()


@pytest.fixture(scope="module", params=[1, 3, 256], ids=lambda rows: f"{rows}-row-shards")
def merged(
    models: ModelCache, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Merged:
    """All of them in one job, and what went through the modules."""
    folder = tmp_path_factory.mktemp("merged")
    path = write_rows(folder / "rows.parquet", VARIED)
    shards = {"shard_rows": request.param}
    spec = job_spec(path, folder / "out", models=MODELS, routes=ROUTES, batching=shards)
    engine = DiffusersEngine(models, spec)
    return make(spec, engine), engine.counts


def images_a_batch(count: CallCount) -> float:
    return count.images / count.batches


def test_each_row_is_what_a_plain_call_of_its_own_gives(merged: Merged) -> None:
    """Images within two levels, depth maps within 1/4096 of their range."""
    made, _ = merged

    found = {each["row_id"]: distances(made.row(each["row_id"]), expected(each["row_id"])) for each in VARIED}

    too_far = {
        name: (picture, depth)
        for name, (picture, depth) in found.items()
        if picture > LEVELS or depth > DEPTH_LEVELS
    }
    assert too_far == {}


def test_rows_of_a_shard_share_module_calls(merged: Merged) -> None:
    """Each model has three to fifteen rows, of one to five steps; a row alone in its shard shares none."""
    made, counts = merged
    shard_rows = made.plan.job.spec.batching.shard_rows

    least = {1: 1, 3: 1.8, 256: 2.5}[shard_rows]
    assert least <= images_a_batch(counts["unet"]) <= shard_rows
    names = ("text_encoder", "text_encoder_2", "vae.encoder", "vae.decoder")
    for name in (*names, "depth_estimator", "image_encoder"):
        least = {1: 1, 3: 2.5, 256: 3}[shard_rows]
        assert least <= images_a_batch(counts[name]) <= shard_rows
