"""The engine of a worker process loads what the spec says, into the memory that it is given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors import machine_limits
from actors.engine.diffusers_engine import DiffusersEngine, _capacity_bytes, make_engine
from tests.support.in_process import job_spec, plan_for, worker_for, write_rows

# With a GPU, other numbers are right.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the engine would use the GPU")


def engine_of(folder: Path, num_cpus: int = 1, **changes: Any) -> DiffusersEngine:
    """The engine of a job with two models, one of which has a safety checker."""
    rows = [{"row_id": model, "model": model, "prompt": "x"} for model in ("sd", "checked")]
    models = {"sd": {"checkpoint": "demo:sd2"}, "checked": {"checkpoint": "demo:sd-safety"}}
    path = write_rows(folder / "in.parquet", rows)
    plan = plan_for(job_spec(path, folder / "out", models=models, **changes))
    num_threads = torch.get_num_threads()
    try:
        engine = make_engine(plan.job, num_cpus)
    finally:
        torch.set_num_threads(num_threads)
    with worker_for(plan, engine) as worker:
        for shard in plan.shards():
            worker.run(shard)
    return engine


@pytest.mark.parametrize(("model_cache_gb", "kept"), [(0.1, 2), (0.0001, 1)])
def test_models_stay_in_memory_as_far_as_the_spec_gives_room(
    tmp_path: Path, model_cache_gb: float, kept: int
) -> None:
    """In gigabytes of weights: a tenth holds both small models, a tenth of a megabyte holds one at a time."""
    engine = engine_of(tmp_path, workers={"model_cache_gb": model_cache_gb})

    assert len(engine.models_loaded) == kept


@pytest.mark.parametrize("num_cpus", [1, machine_limits.num_cpus()])
def test_the_workers_of_a_machine_share_half_of_its_memory(tmp_path: Path, num_cpus: int) -> None:
    """Each with as much as the others, by the CPUs that it has."""
    engine = engine_of(tmp_path, num_cpus)

    num_workers = machine_limits.num_cpus() // num_cpus
    share = engine._models._capacity_bytes * num_workers / machine_limits.memory_bytes()
    assert share == pytest.approx(0.5)


@pytest.mark.parametrize(("num_gpus", "share"), [("auto", 0.8), (1, 0.8), (0.5, 0.4), (0.25, 0.2)])
def test_workers_that_share_a_gpu_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_gpus: float | str, share: float
) -> None:
    """A worker alone may fill four fifths of it with weights."""
    device = SimpleNamespace(total_memory=10**10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device_asked: device)
    path = write_rows(tmp_path / "in.parquet", [{"row_id": "a", "prompt": "x"}])
    job = plan_for(job_spec(path, tmp_path / "out", workers={"num_gpus": num_gpus})).job

    assert _capacity_bytes(job, torch.device("cuda"), 1) == pytest.approx(share * 10**10)


@pytest.mark.parametrize("checker", ["on", "off"])
def test_a_checker_is_loaded_if_the_spec_wants_it(tmp_path: Path, checker: str) -> None:
    """Switched off, it takes neither memory nor time. On a CPU, weights keep their layout."""
    model = engine_of(tmp_path, safety={"checker": checker})._models.get("checked")

    assert (model.safety_checker is not None) == (checker == "on")
    assert model.components["unet"].conv_in.weight.is_contiguous()


def test_the_batches_of_all_models_are_counted(tmp_path: Path) -> None:
    """Whoever watches the worker sees the number grow, and never fall when a model is done."""
    counts = engine_of(tmp_path).counts

    # Two models with one row each, of two steps; PNDM asks once more than it has steps.
    assert counts["unet"].images == 3 + 2
    assert counts["vae.decoder"].images == 2
