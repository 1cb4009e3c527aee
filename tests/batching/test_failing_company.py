"""What fails among rows of mixed tasks fails alone: the others are what plain diffusers makes of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import LEVELS, MODELS, ROUTES, VARIED, Expected, distances, reference
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import Made, job_spec, make, model_cache, outcomes_by_id, write_rows

COMPANY = [each for each in VARIED if each["model"] == "sd"]
"""Five tasks, each with three numbers of steps, guidances and schedulers."""
COHORT = [COMPANY[1] | {"row_id": f"alike-{seed}", "seed": seed} for seed in range(2)]
"""Rows that go into one call with the second of the company, and the bad one with them."""
BAD = COHORT[0] | {"row_id": "bad", "prompt": "a bad one"}
GOOD = [*COMPANY, *COHORT]
MARK = 1e6

# Safe says so of every call without guidance.
pytestmark = pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning")


@pytest.fixture(scope="module")
def plain() -> dict[str, Expected]:
    """The good rows by plain diffusers."""
    return {each["row_id"]: reference(each) for each in GOOD}


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A job of the good rows and the bad one."""
    path = write_rows(tmp_path / "rows.parquet", [*GOOD, BAD])
    return job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES)


def too_far(made: Made, plain: Mapping[str, Expected]) -> dict[str, int]:
    """The rows that are not what they should be, with how far they are from it."""
    found = {name: distances(made.row(name), expected)[0] for name, expected in plain.items()}
    return {name: levels for name, levels in found.items() if levels > LEVELS}


@contextmanager
def marked(models: ModelCache, prompt: str, mark: float) -> Iterator[None]:
    """Meanwhile a prompt's states are this number, all of them."""
    components = models.get("sd").components
    ids = components["tokenizer"](prompt, padding="max_length", return_tensors="pt").input_ids[0]

    def put_mark(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        for given, states in zip(args[0], output[0], strict=True):
            if torch.equal(given, ids):
                states.fill_(mark)

    with components["text_encoder"].register_forward_hook(put_mark):
        yield


def test_a_row_of_nan_does_not_spread(spec: JobSpec, plain: dict[str, Expected]) -> None:
    """Neither to the rows of its own call nor to those that its UNet batches are shared with."""
    models = model_cache(spec)

    with marked(models, BAD["prompt"], float("nan")):
        made = make(spec, DiffusersEngine(models, spec))

    assert outcomes_by_id(made) == dict.fromkeys(plain, "ok") | {"bad": "nonfinite_image"}
    assert too_far(made, plain) == {}


def test_a_row_that_a_module_refuses_fails_alone(spec: JobSpec, plain: dict[str, Expected]) -> None:
    """The batch is asked for call by call, and the call then row by row."""
    models = model_cache(spec)
    refused: list[int] = []

    def refuse(module: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, torch.Tensor]) -> None:
        if (kwargs["encoder_hidden_states"] == MARK).any():
            refused.append(len(args[0]))
            raise ValueError("cannot look at this")

    middle = models.get("sd").components["unet"].mid_block
    with marked(models, BAD["prompt"], MARK), middle.register_forward_pre_hook(refuse, with_kwargs=True):
        made = make(spec, DiffusersEngine(models, spec))

    assert outcomes_by_id(made) == dict.fromkeys(plain, "ok") | {"bad": "generation_error"}
    assert too_far(made, plain) == {}
    assert "cannot look at this" in made.row("bad")["error_message"]
    # Of its call with four rows, then of one with two, then alone; with guidance the UNet has two for each.
    assert max(refused) > 8
    assert {8, 4, 2} <= {*refused}


@pytest.mark.parametrize(
    ("module", "most"),
    [
        ("text_encoder.embeddings", 2),
        ("vae.encoder.conv_in", 4),
        ("unet.conv_in", 8),
        ("vae.decoder.conv_in", 4),
    ],
)
def test_batches_that_do_not_fit_are_cut_until_they_do(
    spec: JobSpec, plain: dict[str, Expected], module: str, most: int
) -> None:
    """Wherever memory ends, every row is made."""
    models = model_cache(spec)
    sizes: list[int] = []

    def fit(module: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, torch.Tensor]) -> None:
        sizes.append(len(args[0] if args else kwargs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    owner, _, part = module.partition(".")
    small = attrgetter(part)(models.get("sd").components[owner])
    with small.register_forward_pre_hook(fit, with_kwargs=True):
        made = make(spec, DiffusersEngine(models, spec))

    assert set(outcomes_by_id(made).values()) == {"ok"}
    assert too_far(made, plain) == {}
    assert max(sizes) > most


def test_a_pipeline_that_raises_in_its_own_code_fails_alone(
    tmp_path: Path, plain: dict[str, Expected]
) -> None:
    """As DPM solvers of diffusers 0.42.1 do with beta sigmas from 32 steps on, when the others have ended."""
    raising = {"scheduler": "DPMSolverMultistepScheduler", "scheduler_options": '{"use_beta_sigmas": true}'}
    bad = COMPANY[0] | raising | {"row_id": "bad", "num_inference_steps": 40}
    path = write_rows(tmp_path / "rows.parquet", [bad, *GOOD])

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes_by_id(made) == dict.fromkeys(plain, "ok") | {"bad": "generation_error"}
    assert too_far(made, plain) == {}
