"""Every scheduler runs from a row, or is refused at plan with a reason that is true."""

import ast
import copy
import importlib.util
import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import diffusers
import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from actors.engine.pipelines import pipeline_builder
from actors.engine.quirks.clip_skip import enable_clip_skip
from benchmarks.parity.plain_diffusers import depth_map
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from models import demo_cache
from schemas.errors import RowError, SpecError
from schemas.systems.sampler_names import NAMES, read_sampler
from schemas.systems.scheduler_rules import Published, refusal
from schemas.systems.schedulers import (
    MISFITS,
    SCHEDULERS,
    WITHHELD_OPTIONS,
    options_text,
    parse_options,
    scheduler_settings,
)
from tests.support.checkpoints import demo
from tests.support.in_process import Made, Record, drawn_image, image_of, job_spec, make, mask, write_rows
from tests.support.running import ROOT

LEVELS = 2
"""Of 255: a row's company in a batch may move it this far, no further."""

# diffusers 0.42.1 hands torch tensors to numpy 2 and warns of its own options; a worker only logs that.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver and sde-dpmsolver:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors are done before a second thread has begun."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OTHERS = {
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
}
"""Not among the `compatibles` of Stable Diffusion's schedulers, though they take the same configuration."""


@cache
def loaded_scheduler(config: str) -> Any:
    """A checkpoint's own scheduler, from its scheduler_config.json (as text)."""
    published = json.loads(config)
    return getattr(diffusers, published["_class_name"]).from_config(published)


@cache
def new_scheduler(name: str, config: str, options: str = "{}") -> Any:
    """A scheduler from a checkpoint's scheduler_config.json (as text), as loading and from_config make it.

    Of configurations that give it the same arguments, one is built: KDPM2's class takes 0.25 s.
    """
    cls, settings = getattr(diffusers, name), loaded_scheduler(config).config
    arguments, *_ = cls.extract_init_dict(dict(settings), **json.loads(options))
    key = name, json.dumps(arguments, sort_keys=True)
    if key not in _schedulers:
        _schedulers[key] = cls.from_config(settings, **json.loads(options))
    return _schedulers[key]


_schedulers: dict[tuple[str, str], Any] = {}
"""The schedulers that were built, by their class and arguments."""


def sampled(scheduler: Any, num_inference_steps: int, strength: float | None = None) -> torch.Tensor:
    """What a pipeline's loop makes with a scheduler, on a smooth function in the UNet's place."""
    scheduler = copy.deepcopy(scheduler)
    generator = torch.Generator().manual_seed(1)
    timesteps, _ = retrieve_timesteps(scheduler, num_inference_steps, "cpu")
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    if strength is None:
        latents = latents * scheduler.init_noise_sigma
    else:
        first = (num_inference_steps - int(num_inference_steps * strength)) * scheduler.order
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        latents = scheduler.add_noise(latents / 2, latents, timesteps[:1])
    takes = inspect.signature(scheduler.step).parameters
    given = {"generator": generator} if "generator" in takes else {}
    for timestep in timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        predicted = torch.tanh(seen * 1.3 + float(timestep) / 1000)
        latents = scheduler.step(predicted, timestep, latents, **given, return_dict=False)[0]
    return latents


def fails(
    name: str,
    config: str,
    num_inference_steps: int,
    strength: float | None = None,
    options: str = "{}",
) -> bool:
    """Whether diffusers raises, or gives NaN."""
    try:
        made = sampled(new_scheduler(name, config, options), num_inference_steps, strength)
    except (ValueError, TypeError, IndexError, NameError, RuntimeError, AssertionError):
        return True
    return not torch.isfinite(made).all()


def published(config: str, only: frozenset[str] | None = None) -> Published:
    found = json.loads(config)
    return Published(
        name=found["_class_name"], settings=tuple(sorted(scheduler_settings(found).items())), only=only
    )


def config_of(cls: str, **settings: Any) -> str:
    return json.dumps({"_class_name": cls, "num_train_timesteps": 1000, **BETAS} | settings)


PUBLISHED = {
    "SD 1.5": config_of(
        "PNDMScheduler",
        clip_sample=False,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        trained_betas=None,
    ),
    "SD 1.5 inpainting": config_of(
        "DDIMScheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1, trained_betas=None
    ),
    "SD 2.1": config_of(
        "DDIMScheduler",
        clip_sample=False,
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ),
    "SDXL": config_of(
        "EulerDiscreteScheduler",
        clip_sample=False,
        prediction_type="epsilon",
        skip_prk_steps=True,
        steps_offset=1,
        timestep_spacing="leading",
    ),
    "SDXL Turbo": config_of(
        "EulerAncestralDiscreteScheduler",
        clip_sample=False,
        prediction_type="epsilon",
        skip_prk_steps=True,
        steps_offset=1,
        timestep_spacing="trailing",
    ),
    "an LCM": config_of("LCMScheduler", clip_sample=False, original_inference_steps=50),
    "x2 upscaler": config_of(
        "EulerDiscreteScheduler",
        clip_sample=False,
        prediction_type="original_sample",
        set_alpha_to_one=False,
        steps_offset=1,
    ),
    "x4 upscaler": config_of(
        "DDIMScheduler",
        beta_end=0.02,
        beta_start=0.0001,
        clip_sample=False,
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ),
}
"""scheduler_config.json of known checkpoints: what matters of them."""

DEMOS = {
    "sd-inpaint": "SD 1.5 inpainting",
    "sd2": "SD 2.1",
    "sdxl": "SDXL",
    "sdxl-inpaint": "SDXL",
    "sdxl-refiner": "SDXL",
    "latent-upscale": "x2 upscaler",
    "upscale": "x4 upscaler",
}
"""Whose scheduler a demo checkpoint has; the other kinds have that of SD 1.5."""


def test_the_list_is_what_diffusers_calls_compatible_but_for_what_is_documented() -> None:
    """Both ways: no compatible one is forgotten, and each other one goes by the checkpoint's betas."""
    compatible = {cls.__name__ for cls in diffusers.PNDMScheduler().compatibles}

    assert compatible - set(SCHEDULERS) == {"DPMSolverSDEScheduler", "EDMEulerScheduler"}
    assert compatible - set(SCHEDULERS) <= set(MISFITS)
    assert set(SCHEDULERS) - compatible == OTHERS
    assert all({*BETAS, "prediction_type"} <= set(SCHEDULERS[name]) for name in SCHEDULERS)


@pytest.mark.parametrize("kind", demo_cache.RANDOM_KINDS)
def test_a_demo_checkpoints_scheduler_is_configured_as_the_published_one(kind: str) -> None:
    """Also where its own class has no use for a key: a scheduler that a row chooses inherits it."""
    theirs = json.loads(PUBLISHED[DEMOS.get(kind, "SD 1.5")])

    ours = json.loads((demo(kind) / "scheduler" / "scheduler_config.json").read_text())

    assert {name: ours.get(name) for name in theirs} == theirs
    assert ours.get("skip_prk_steps") == theirs.get("skip_prk_steps")


def test_the_documents_list_them() -> None:
    """Those that run, and those of diffusers' `compatibles` that do not."""
    page = (ROOT / "docs" / "job-spec.md").read_text()
    section = page[page.index("## Schedulers") : page.index("## Output columns")]
    listed, refused = section.split("`plan` refuses")

    named = {word for word in re.findall(r"`(\w+)`", listed) if word.endswith("Scheduler")}
    assert named == set(SCHEDULERS)
    assert all(f"`{name}`" in refused for name in ("DPMSolverSDEScheduler", "EDMEulerScheduler"))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_options_are_the_arguments_of_diffusers_class(name: str) -> None:
    """With its defaults, and with its choices where it says which there are."""
    arguments = dict(inspect.signature(getattr(diffusers, name).__init__).parameters)
    del arguments["self"]

    assert set(SCHEDULERS[name]) == set(arguments) - (set(WITHHELD_OPTIONS) - set(SCHEDULERS[name]))
    for key, option in SCHEDULERS[name].items():
        assert option.default == arguments[key].default, key
        hinted = arguments[key].annotation
        if get_origin(hinted) is Literal:
            never = {"flow_prediction", "fixed_large_log", "learned", "learned_range"}
            assert set(option.choices) | never >= set(get_args(hinted)), key
            assert set(option.choices) <= set(get_args(hinted)), key


UNFORESEEN = ("x4 upscaler", "KDPM2AncestralDiscreteScheduler", 2)
"""Its noise levels lie so far apart then that float32 loses the step between them: the row is NaN, alone."""


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_just_what_diffusers_cannot_do_is_refused(checkpoint: str) -> None:
    """On known checkpoints' configurations, for few steps, many and parts of them: exactly, both ways."""
    config = PUBLISHED[checkpoint]
    for name in SCHEDULERS:
        for steps in (1, 2, 3, 4, 5, 6, 25, 50, 51):
            said = refusal(name, None, published(config), steps)
            foreseen = (checkpoint, name, steps) != UNFORESEEN
            assert bool(said) == (fails(name, config, steps) and foreseen), (name, steps, said)


MANY_STEPS = {
    "SD 1.5": (1000, ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"]),
    "SDXL": (
        999,
        ["DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"],
    ),
    "SDXL Turbo": (1000, ["UniPCMultistepScheduler", "EulerDiscreteScheduler"]),
}


@pytest.mark.parametrize("checkpoint", MANY_STEPS)
def test_as_many_steps_as_timesteps_are_refused_where_they_fail(checkpoint: str) -> None:
    """At a thousand steps some schedulers run past the last timestep, or meet one twice."""
    config = PUBLISHED[checkpoint]
    steps, names = MANY_STEPS[checkpoint]
    for name in names:
        said = refusal(name, None, published(config), steps)
        assert bool(said) == fails(name, config, steps), (name, steps, said)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_a_checkpoint_of_any_scheduler_takes_what_it_is_said_to_take(cls: str) -> None:
    """Its class's whole configuration is inherited, also what the other class cannot have: exactly."""
    config = json.dumps(json.loads(getattr(diffusers, cls)(**BETAS).to_json_string()))
    for name in SCHEDULERS:
        for steps in (2, 5):
            said = refusal(name, None, published(config), steps)
            assert bool(said) == fails(name, config, steps), (name, steps, said)


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
def test_an_image_can_be_redrawn_with_every_scheduler(strength: float) -> None:
    """With parts of the steps too, which begin in the middle of the timesteps."""
    for name in SCHEDULERS:
        for steps in (2, 4, 7, 25):
            if steps * strength >= 1:
                config = PUBLISHED["SD 1.5"]
                assert refusal(name, None, published(config), steps, strength < 1) is None
                assert not fails(name, config, steps, strength), (name, steps)


OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("SD 1.5", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("SD 1.5", "EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}),
    ("SD 1.5", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("SD 1.5", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
    (
        "SD 1.5",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    ("SD 1.5", "UniPCMultistepScheduler", {"solver_type": "bh1"}),
    ("SD 1.5", "UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("SD 1.5", "UniPCMultistepScheduler", {"predict_x0": False}),
    ("SD 1.5", "UniPCMultistepScheduler", {"lower_order_final": False}),
    ("SD 1.5", "UniPCMultistepScheduler", {"lower_order_final": False, "solver_order": 1}),
    ("SD 1.5", "PNDMScheduler", {"skip_prk_steps": False}),
    ("SD 1.5", "LCMScheduler", {"original_inference_steps": 4}),
    ("SD 1.5", "LCMScheduler", {"rescale_betas_zero_snr": True}),
    ("SD 2.1", "LCMScheduler", {"rescale_betas_zero_snr": True}),
    ("SD 1.5", "DDIMScheduler", {"rescale_betas_zero_snr": True}),
    ("SD 1.5", "DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("SD 2.1", "DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("SD 1.5", "DDIMScheduler", {"steps_offset": 300}),
    ("SD 1.5", "LMSDiscreteScheduler", {"steps_offset": 300, "timestep_spacing": "leading"}),
    ("SD 1.5", "UniPCMultistepScheduler", {"steps_offset": 300, "timestep_spacing": "leading"}),
    ("SD 1.5", "DEISMultistepScheduler", {"steps_offset": 300, "timestep_spacing": "leading"}),
    ("SD 1.5", "KDPM2DiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("SD 1.5 inpainting", "PNDMScheduler", {"skip_prk_steps": True}),
    ("x2 upscaler", "HeunDiscreteScheduler", {"prediction_type": "sample"}),
]


@pytest.mark.parametrize(("checkpoint", "name", "options"), OPTIONS)
def test_options_that_diffusers_cannot_have_together_are_refused(
    checkpoint: str, name: str, options: dict[str, Any]
) -> None:
    """With the checkpoint's own settings, for each number of steps: exactly."""
    config, text = PUBLISHED[checkpoint], options_text(options)
    for steps in (1, 2, 3, 5, 8, 25):
        said = refusal(name, text, published(config), steps)
        assert bool(said) == fails(name, config, steps, options=text), (steps, said)


def test_where_no_signal_is_left_only_the_first_step_cannot_be_made() -> None:
    """An image that is redrawn later begins with some: DDIM's next step is a number."""
    config, name = PUBLISHED["SD 1.5"], "DDIMScheduler"
    text = options_text({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    scheduler = copy.deepcopy(new_scheduler(name, config, text))
    scheduler.set_timesteps(5)
    latents = torch.ones(1, 4, 4, 4)

    first, second = (scheduler.step(latents, time, latents).prev_sample for time in scheduler.timesteps[:2])

    assert not first.isfinite().all()
    assert second.isfinite().all()
    assert "divides by it" in str(refusal(name, text, published(config), 5, False))
    assert refusal(name, text, published(config), 5, True) is None


def test_runge_kutta_steps_go_by_the_first_timesteps_wherever_they_begin() -> None:
    """Begun later, PNDM runs at an earlier timestep's noise: no error, and another image."""
    config, name = config_of("PNDMScheduler"), "PNDMScheduler"
    scheduler = copy.deepcopy(new_scheduler(name, config))
    scheduler.set_timesteps(10)
    middle = scheduler.timesteps[5]
    latents = torch.ones(1, 4, 4, 4)

    made = scheduler.step(torch.zeros_like(latents), middle, latents).prev_sample
    begun = scheduler._get_prev_sample(
        latents, int(scheduler.prk_timesteps[0]), int(middle) - 50, torch.zeros_like(latents)
    )

    assert torch.equal(made, begun)
    assert int(scheduler.prk_timesteps[0]) > int(middle)
    assert "cannot leave out the first steps" in str(refusal(name, None, published(config), 10, True))
    assert refusal(name, None, published(config), 10, False) is None


def test_misfits_are_what_their_reasons_say() -> None:
    """Each reason is a fact that can be looked up in diffusers."""
    sd = PUBLISHED["SD 1.5"]
    for name, reason in MISFITS.items():
        said = refusal(name, None, published(sd))
        assert said is not None
        assert reason in said
        if "scale of its own" in reason:
            scheduler = copy.deepcopy(new_scheduler(name, sd))
            scheduler.set_timesteps(20)
            assert scheduler.timesteps.max() < 1.2
            assert scheduler.timesteps.min() >= -2
        elif "flow matching" in reason:
            assert "beta_start" not in inspect.signature(getattr(diffusers, name).__init__).parameters
        elif "not back" in reason:
            scheduler = copy.deepcopy(new_scheduler(name, sd))
            scheduler.set_timesteps(20)
            assert scheduler.timesteps[0] < scheduler.timesteps[-1]


def test_dpmsolver_sde_takes_no_generator_and_needs_another_package() -> None:
    """Read from its source, which cannot be imported without that package."""
    module = importlib.util.find_spec("diffusers.schedulers")
    assert module is not None
    assert module.origin is not None
    source = Path(module.origin).with_name("scheduling_dpmsolver_sde.py").read_text()
    (step,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "step"
    )

    assert "generator" not in {argument.arg for argument in step.args.args}
    assert "import torchsde" in source
    own = json.dumps({"_class_name": "DPMSolverSDEScheduler"})
    assert "takes no generator" in str(refusal("DPMSolverSDEScheduler", None, published(own)))


def test_a_checkpoints_own_scheduler_passes_whatever_it_is() -> None:
    """Others do not fit one that darkroom knows nothing of."""
    own = json.dumps({"_class_name": "CMStochasticIterativeScheduler"})
    edm = json.dumps({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5})

    assert refusal("CMStochasticIterativeScheduler", None, published(own), 1) is None
    assert "published with CMStochastic" in str(refusal("DDIMScheduler", None, published(own), 1))
    assert refusal("EDMEulerScheduler", None, published(edm), 1) is None
    assert "knows no options" in str(refusal("EDMEulerScheduler", '{"rho":5}', published(edm), 1))


# Whole jobs.

IMAGE, DEPTH = drawn_image(), depth_map()
KINDS: dict[str, tuple[str, Record]] = {
    "sd": ("text2img", {}),
    "sd2": ("text2img", {}),
    "sdxl": ("text2img", {}),
    "sdxl-refiner": ("img2img", {"image": IMAGE, "strength": 0.6}),
    "sd-inpaint": ("inpaint", {"image": IMAGE, "mask_image": mask(), "strength": 0.7}),
    "sdxl-inpaint": ("inpaint", {"image": IMAGE, "mask_image": mask(), "strength": 1.0}),
    "depth2img": ("depth2img", {"image": IMAGE, "depth_map": DEPTH, "strength": 0.8}),
    "safe": ("safe", {}),
    "variation": ("variation", {"image": IMAGE}),
    "upscale": ("upscale", {"image": drawn_image((16, 16))}),
    "latent-upscale": ("latent_upscale", {"image": IMAGE}),
    "ldm3d": ("ldm3d", {}),
    "ldm3d-upscale": ("ldm3d_upscale", {"image": IMAGE, "depth_map": DEPTH, "height": 64, "width": 64}),
}


def job(folder: Path, rows: Sequence[Record], **changes: Any) -> Made:
    """Make rows that may name any kind of checkpoint."""
    kinds = list(dict.fromkeys(row.get("model", "sd") for row in rows))
    tasks = {row.get("task", "text2img"): row.get("model", "sd") for row in rows}
    spec = job_spec(
        write_rows(folder / "rows.parquet", rows, changes.pop("types", None)),
        folder / "out",
        models={kind: {"checkpoint": f"demo:{kind}"} for kind in kinds},
        routes={task: {"model": kind, "num_inference_steps": 3} for task, kind in tasks.items()},
        default_route=next(iter(tasks)),
        **changes,
    )
    return make(spec)


def test_every_scheduler_runs_on_every_kind_of_checkpoint_or_is_refused(tmp_path: Path) -> None:
    """No row fails for a reason that the plan did not know."""
    rows = [
        {
            "row_id": f"{kind} {name}",
            "model": kind,
            "task": task,
            "scheduler": name,
            "prompt": "a fox",
            **values,
        }
        for kind, (task, values) in KINDS.items()
        for name in [*SCHEDULERS, "DPMSolverSDEScheduler", "EDMEulerScheduler"]
    ]

    made = job(tmp_path, rows)

    found = {row["row_id"]: row["error_code"] or row["status"] for row in made.rows}
    refused = {row_id for row_id, outcome in found.items() if outcome == "invalid_scheduler"}
    assert {row_id for row_id, outcome in found.items() if outcome != "ok"} == refused
    # Published without skip_prk_steps, and this row has three steps and leaves out the first.
    short = {"sd-inpaint PNDMScheduler"}
    # Published with a prediction_type that Euler alone knows: Heun and LMS want it set.
    others = {f"latent-upscale {name}" for name in SCHEDULERS if name != "EulerDiscreteScheduler"}
    misfits = {f"{kind} {name}" for kind in KINDS for name in ("DPMSolverSDEScheduler", "EDMEulerScheduler")}
    assert refused == short | others | misfits
    assert make_plan(make_survey(made.plan.job.spec))[1].num_bad == {"invalid_scheduler": len(refused)}


def test_the_latent_upscaler_draws_the_same_with_the_schedulers_it_is_said_to_run_with(
    tmp_path: Path,
) -> None:
    """They are three ways to solve one equation, and at many steps they agree."""
    names = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
    values = {"model": "latent-upscale", "task": "latent_upscale", "prompt": "a fox", "seed": 1}
    sample = '{"prediction_type": "sample"}'
    options = {
        "EulerDiscreteScheduler": None,
        "HeunDiscreteScheduler": sample,
        "LMSDiscreteScheduler": sample,
    }
    rows = [
        {"row_id": name, "scheduler": name, "scheduler_options": options[name], "image": IMAGE, **values}
        | {"num_inference_steps": 40}
        for name in names
    ]

    made = job(tmp_path, rows)

    euler, *others = (np.asarray(image_of(made.row(name)), dtype=np.int16) for name in names)
    assert all(np.abs(euler - other).mean() < 5 for other in others)


STOCHASTIC: list[Record] = [
    {"scheduler": "DDIMScheduler", "eta": 1.0},
    {"scheduler": "DDIMParallelScheduler", "eta": 1.0},
    {"scheduler": "DDPMScheduler"},
    {"scheduler": "DDPMParallelScheduler"},
    {
        "scheduler": "DPMSolverMultistepScheduler",
        "scheduler_options": '{"algorithm_type": "sde-dpmsolver++"}',
    },
    {
        "scheduler": "DPMSolverSinglestepScheduler",
        "scheduler_options": '{"algorithm_type": "sde-dpmsolver++"}',
    },
    {"scheduler": "EulerAncestralDiscreteScheduler"},
    {"scheduler": "KDPM2AncestralDiscreteScheduler"},
    {"scheduler": "LCMScheduler"},
    {"scheduler": "SASolverScheduler"},
    {"scheduler": "TCDScheduler", "eta": 0.5},
]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    """Rows of all schedulers that draw noise as they go: three to a call, and alone."""
    rows = [
        {"row_id": f"{values['scheduler']} {seed}", "seed": seed, "prompt": "a fox", **values}
        for values in STOCHASTIC
        for seed in (3, 9, 7)
    ]
    together, alone = (
        job(tmp_path_factory.mktemp("noisy"), rows, batching={"max_batch_rows": size}) for size in (3, 1)
    )
    return together, alone


@pytest.mark.parametrize("name", [values["scheduler"] for values in STOCHASTIC])
def test_noise_on_the_way_is_the_rows_own(noisy: tuple[Made, Made], name: str) -> None:
    """With a generator per row, a row is the same in any company, and another seed another image."""
    together, alone = (
        [np.asarray(image_of(made.row(f"{name} {seed}")), dtype=np.int16) for seed in (3, 9, 7)]
        for made in noisy
    )

    assert max(np.abs(one - other).max() for one, other in zip(together, alone, strict=True)) <= LEVELS
    assert np.abs(together[0] - together[1]).mean() > LEVELS


@cache
def plain_pipeline(folder: Path) -> tuple[Any, Any]:
    """A checkpoint in diffusers' own pipeline, and the scheduler that it is published with."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    enable_clip_skip(pipeline.text_encoder)
    return pipeline, pipeline.scheduler


def reference(folder: Path, name: str | None, options: Mapping[str, Any], steps: int = 3) -> np.ndarray:
    """A plain diffusers call, as darkroom's documents say a row is made."""
    pipeline, published = plain_pipeline(folder)
    cls = type(published) if name is None else getattr(diffusers, name)
    pipeline.scheduler = cls.from_config(published.config, **options)
    made = pipeline("a fox", num_inference_steps=steps, generator=torch.Generator("cpu").manual_seed(7))
    return np.asarray(made.images[0], dtype=np.int16)


GIVEN: list[tuple[str, str | None, dict[str, Any]]] = [
    ("plain", "EulerDiscreteScheduler", {}),
    ("karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("trailing", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("own", "PNDMScheduler", {"timestep_spacing": "trailing"}),
]


def test_options_reach_the_scheduler_as_plain_diffusers_would_give_them(tmp_path: Path) -> None:
    """Also those of the published class; and the output has them as one canonical text."""
    rows = [
        {
            "row_id": row_id,
            "prompt": "a fox",
            "seed": 7,
            "scheduler": name,
            "scheduler_options": json.dumps(options),
        }
        for row_id, name, options in GIVEN
    ]

    made = job(tmp_path, rows)

    drawn = []
    for row_id, name, options in GIVEN:
        row = made.row(row_id)
        drawn.append(np.asarray(image_of(row), dtype=np.int16))
        assert np.abs(drawn[-1] - reference(demo("sd"), name, options)).max() <= LEVELS, row_id
        assert row["scheduler_options"] == options_text(options)
    assert all(np.abs(drawn[0] - other).mean() > LEVELS for other in drawn[1:])


def test_options_of_the_route_are_told_apart_from_the_rows(tmp_path: Path) -> None:
    """A row that changes the scheduler alone is told whose options do not fit, and how to have none."""
    rows = [
        {"row_id": "route's", "scheduler": "DDIMScheduler", "scheduler_options": None},
        {"row_id": "own", "scheduler": "DDIMScheduler", "scheduler_options": '{"use_karras_sigmas": true}'},
        {"row_id": "none", "scheduler": "DDIMScheduler", "scheduler_options": "{}"},
    ]
    route = {"scheduler": "EulerDiscreteScheduler", "scheduler_options": {"use_karras_sigmas": True}}
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "a fox"} | row for row in rows])

    made = make(job_spec(path, tmp_path / "out", routes={"text2img": {"model": "sd"} | route}))

    said = [row["error_message"] for row in made.rows]
    assert said[0].endswith(
        ". The options come from the route; set scheduler_options to {} for a row without options"
    )
    assert said[1] == said[0].partition(". The options")[0]
    assert said[2] is None


def test_a_samplers_name_makes_what_its_class_and_options_make(tmp_path: Path) -> None:
    """Also with an ending and beside options; the output has the class and the options."""
    names = [name for spellings in NAMES for name in spellings]
    given: list[tuple[str, str | None]] = [
        (name, None) for name in (*names, "DPM++ 2M Karras", "heun_exponential")
    ]
    given += [("Euler Karras", '{"steps_offset":1}'), ("Euler Karras", '{"use_karras_sigmas":false}')]
    rows = [
        {"row_id": i, "prompt": "a fox", "seed": 7, "scheduler": name, "scheduler_options": options}
        for i, (name, options) in enumerate(given)
    ]

    made = job(tmp_path, rows)

    for i, (name, options) in enumerate(given):
        row, sampler = made.row(i), read_sampler(name)
        assert sampler is not None
        expected = {**sampler.options, **json.loads(options or "{}")}
        assert (row["status"], row["scheduler"]) == ("ok", sampler.scheduler), row["error_message"]
        assert json.loads(row["scheduler_options"] or "{}") == expected
        ours = np.asarray(image_of(row), dtype=np.int16)
        assert np.abs(ours - reference(demo("sd"), sampler.scheduler, expected)).max() <= LEVELS, name


def test_a_rows_own_sampler_wins_over_its_route_option_by_option(tmp_path: Path) -> None:
    """The options of the route still apply; those that its own sampler's name implies do not."""
    rows = [
        {"row_id": "route's", "scheduler": None, "scheduler_options": None},
        {"row_id": "name", "scheduler": "Euler a", "scheduler_options": None},
        {"row_id": "both", "scheduler": "LMS Karras", "scheduler_options": None},
        {"row_id": "against", "scheduler": "euler trailing", "scheduler_options": None},
        {"row_id": "options", "scheduler": None, "scheduler_options": '{"solver_order":1}'},
        {"row_id": "unfit", "scheduler": "lcm", "scheduler_options": None, "num_inference_steps": 51},
    ]
    linear = {"timestep_spacing": "linspace"}
    route = {"scheduler": "DPM++ 2M Karras", "scheduler_options": linear, "num_inference_steps": 2}
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "a fox"} | row for row in rows])

    made = make(job_spec(path, tmp_path / "out", routes={"text2img": {"model": "sd"} | route}))

    karras = {"use_karras_sigmas": True}
    assert {
        row["row_id"]: (row["scheduler"], json.loads(row["scheduler_options"] or "{}"))
        for row in made.rows
        if row["status"] == "ok"
    } == {
        "route's": ("DPMSolverMultistepScheduler", karras | linear),
        "name": ("EulerAncestralDiscreteScheduler", linear),
        "both": ("LMSDiscreteScheduler", karras | linear),
        "against": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        "options": ("DPMSolverMultistepScheduler", karras | {"solver_order": 1}),
    }
    assert made.row("unfit")["error_message"].endswith("is 51 (`lcm` is read as LCMScheduler)")


def test_a_later_step_of_a_chain_takes_a_samplers_name(tmp_path: Path) -> None:
    """It makes what the class makes."""
    made = [
        make(
            job_spec(
                write_rows(tmp_path / f"{number}.parquet", [{"row_id": 1, "prompt": "x", "task": "first"}]),
                tmp_path / str(number),
                routes={
                    "first": {
                        "task": "text2img",
                        "model": "sd",
                        "num_inference_steps": 2,
                        "then": ["second"],
                    },
                    "second": {"task": "img2img", "model": "sd", "num_inference_steps": 4, **values},
                },
                default_route="first",
            )
        ).row(1)
        for number, values in enumerate(
            [
                {"scheduler": "LMS Karras"},
                {"scheduler": "LMSDiscreteScheduler", "scheduler_options": {"use_karras_sigmas": True}},
                {"scheduler": "LMSDiscreteScheduler"},
            ]
        )
    ]

    assert [row["status"] for row in made] == ["ok"] * 3
    assert made[0]["image_sha256"] == made[1]["image_sha256"] != made[2]["image_sha256"]


def test_a_few_step_checkpoint_keeps_its_published_scheduler(tmp_path: Path) -> None:
    """Class and configuration: nothing of it is a default of darkroom's."""
    folder = tmp_path / "turbo"
    shutil.copytree(demo("sd"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(
        config_of("LCMScheduler", original_inference_steps=8, steps_offset=1, timestep_scaling=20.0)
    )
    rows = [{"row_id": steps, "prompt": "a fox", "seed": 7, "num_inference_steps": steps} for steps in (4, 9)]
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", rows),
        tmp_path / "out",
        models={"sd": {"checkpoint": str(folder)}},
    )

    made = make(spec)

    assert made.row(4)["scheduler"] == "LCMScheduler"
    ours = np.asarray(image_of(made.row(4)), dtype=np.int16)
    assert np.abs(ours - reference(folder, None, {}, steps=4)).max() <= LEVELS
    assert made.row(9)["error_code"] == "invalid_scheduler"
    assert "at most 8 steps" in made.row(9)["error_message"]


COLUMNS: list[tuple[str, pa.DataType, Any]] = [
    ("text", pa.string(), '{"steps_offset": 1, "use_karras_sigmas": true, "sigma_min": 1}'),
    (
        "struct",
        pa.struct({"use_karras_sigmas": pa.bool_(), "sigma_min": pa.float32(), "steps_offset": pa.int8()}),
        {"use_karras_sigmas": True, "sigma_min": 1.0, "steps_offset": 1},
    ),
    (
        "map of texts",
        pa.map_(pa.string(), pa.string()),
        [("sigma_min", "1"), ("use_karras_sigmas", "true"), ("steps_offset", "1"), ("sigma_max", None)],
    ),
    (
        "large text",
        pa.large_string(),
        '{"use_karras_sigmas": true, "sigma_min": 1.0, "steps_offset": 1, "sigma_max": null}',
    ),
]


@pytest.mark.parametrize(
    ("arrow_type", "value"), [case[1:] for case in COLUMNS], ids=[case[0] for case in COLUMNS]
)
def test_options_come_as_text_struct_or_map(tmp_path: Path, arrow_type: pa.DataType, value: Any) -> None:
    """They are the same options, so they have the same text; a null row has its route's."""
    rows = [
        {"row_id": "given", "prompt": "x", "scheduler": "EulerDiscreteScheduler", "scheduler_options": value},
        {"row_id": "none", "prompt": "x", "scheduler": "EulerDiscreteScheduler", "scheduler_options": None},
    ]

    made = job(tmp_path, rows, types={"scheduler_options": arrow_type})

    assert made.row("given")["scheduler_options"] == (
        '{"sigma_min":1.0,"steps_offset":1,"use_karras_sigmas":true}'
    )
    assert made.row("none")["scheduler_options"] is None


BAD: list[tuple[str | None, str, str]] = [
    (
        "EulerDiscreteScheduler",
        '{"use_karas_sigmas": true}',
        "no option `use_karas_sigmas` (did you mean `use_k",
    ),
    ("DDIMScheduler", '{"use_karras_sigmas": true}', "DDIMScheduler has no option `use_karras_sigmas`"),
    (
        "EulerDiscreteScheduler",
        '{"use_karras_sigmas": 1}',
        "use_karras_sigmas is 1; it must be true or false",
    ),
    (None, '{"steps_offset": 1.5}', "steps_offset is 1.5; it must be a whole number from 0 to 1000"),
    (None, '{"steps_offset": true}', "steps_offset is true; it must be a whole number"),
    ("EulerDiscreteScheduler", '{"sigma_max": 1e99}', "it must be a number from -1000000 to 1000000"),
    (None, '{"beta_start": 2}', "beta_start is 2; it must be a number from 0 to 1"),
    ("DDIMScheduler", '{"dynamic_thresholding_ratio": 1.5}', "it must be a number from 0 to 1"),
    ("DEISMultistepScheduler", '{"solver_order": 0}', "it must be a whole number from 1 to 1000"),
    ("DPMSolverSinglestepScheduler", '{"solver_order": 4}', "it must be a whole number from 1 to 3"),
    ("SASolverScheduler", '{"predictor_order": 0}', "it must be a whole number from 1 to 1000"),
    ("SASolverScheduler", '{"corrector_order": 0}', "it must be a whole number from 1 to 1000"),
    (
        None,
        '{"timestep_spacing": "foo"}',
        "timestep_spacing is foo; it must be one of leading, linspace, trail",
    ),
    (None, '{"timestep_spacing": ["trailing"]}', 'timestep_spacing is ["trailing"]; it must be one of'),
    (None, '{"num_train_timesteps": 10}', "cannot be set: it is what the checkpoint was trained with"),
    ("UniPCMultistepScheduler", '{"use_flow_sigmas": true}', "it is for models trained with flow matching"),
    (None, '{"steps_offset": 1', "cannot be read: it is not a JSON object such as"),
    (None, '["steps_offset"]', "cannot be read: it is not a JSON object"),
    (None, '{"steps_offset": 1, "steps_offset": 2}', "a name appears in it twice"),
    (None, '{"beta_start": NaN}', "NaN is not a JSON number"),
    (None, "[" * 4_000, "cannot be read: "),
    (None, '{"\\ud800": 1}', 'has no option `"\\ud800"`'),
    ("FlowMatchEulerDiscreteScheduler", "{}", "is for models trained with flow matching"),
    ("VQDiffusionScheduler", "{}", "is not a scheduler for Stable Diffusion"),
    (
        "",
        "{}",
        "`` is not a scheduler for Stable Diffusion; schedulers are DDIMParallelScheduler, DDIMScheduler,",
    ),
]


def test_options_that_cannot_be_are_told_to_their_own_row_at_plan(tmp_path: Path) -> None:
    """With the name, the value and what would do; the others in the file are made."""
    rows = [
        {"row_id": str(i), "prompt": "x", "scheduler": name, "scheduler_options": text}
        for i, (name, text, _) in enumerate(BAD)
    ] + [{"row_id": "good", "prompt": "x", "scheduler_options": " {} "}]

    made = job(tmp_path, rows)

    for i, (_, _, says) in enumerate(BAD):
        assert made.row(str(i))["error_code"] == "invalid_scheduler"
        assert says in made.row(str(i))["error_message"]
        assert len(made.row(str(i))["error_message"]) < 1000
    assert made.row("good")["status"] == "ok"
    assert make_plan(make_survey(made.plan.job.spec))[1].num_bad == {"invalid_scheduler": len(BAD)}


VALUES_THAT_FAIL = [
    ("DPMSolverSinglestepScheduler", "solver_order", 0),
    ("DPMSolverSinglestepScheduler", "solver_order", 4),
    ("DPMSolverMultistepScheduler", "solver_order", 0),
    ("DEISMultistepScheduler", "solver_order", 0),
    ("UniPCMultistepScheduler", "solver_order", 0),
    ("SASolverScheduler", "predictor_order", 0),
    ("SASolverScheduler", "corrector_order", 0),
    ("DDIMScheduler", "beta_end", 1.5),
    ("EulerDiscreteScheduler", "beta_start", -0.5),
    ("DDPMScheduler", "dynamic_thresholding_ratio", 1.5),
]


@pytest.mark.parametrize(("name", "option", "value"), VALUES_THAT_FAIL)
def test_values_that_fail_in_diffusers_are_out_of_bounds(name: str, option: str, value: float) -> None:
    """Each would be an exception or NaN on a worker; and the nearest value within the bounds is taken."""
    config = PUBLISHED["SD 1.5"]
    bounds = SCHEDULERS[name][option]
    near = min(max(value, bounds.minimum), bounds.maximum)
    switches = {"thresholding": True} if option == "dynamic_thresholding_ratio" else {}
    bad, good = (options_text({option: number, **switches}) for number in (value, near))

    assert f"{option} is {value}; it must be" in str(refusal(name, bad, published(config), 4))
    assert fails(name, config, 4, options=bad)
    assert refusal(name, good, published(config), 4) is None


def test_what_only_diffusers_can_refuse_costs_its_row_alone(tmp_path: Path) -> None:
    """When the scheduler runs: the row has diffusers' message."""
    single = {"scheduler": "DPMSolverSinglestepScheduler"}
    # Its first two timesteps are the same when they are rounded, so diffusers 0.42.1 begins at the second.
    many = {"scheduler": "DPMSolverMultistepScheduler", "num_inference_steps": 40}
    rows = [
        {"row_id": "run", "prompt": "x", "scheduler_options": '{"use_beta_sigmas": true}', **many},
        {"row_id": "good", "prompt": "x", "scheduler_options": '{"solver_order": 3}', **single},
    ]

    made = job(tmp_path, rows)

    assert made.row("run")["error_code"] == "generation_error"
    assert "index 41 is out of bounds" in made.row("run")["error_message"]
    assert made.row("good")["status"] == "ok"


def test_a_row_changes_its_routes_options_and_takes_them_off(tmp_path: Path) -> None:
    """A row's options replace the route's, all of them; {} is the checkpoint's own configuration."""
    route = {
        "model": "sd",
        "num_inference_steps": 2,
        "scheduler": "EulerDiscreteScheduler",
        "scheduler_options": {"use_karras_sigmas": True, "sigma_min": 1},
    }
    texts = {"route": None, "own": '{"timestep_spacing": "trailing"}', "bare": "{}"}
    rows = [{"row_id": name, "prompt": "x", "scheduler_options": text} for name, text in texts.items()]
    path = write_rows(tmp_path / "rows.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", routes={"text2img": route}))

    assert {row["row_id"]: row["scheduler_options"] for row in made.rows} == {
        "route": '{"sigma_min":1.0,"use_karras_sigmas":true}',
        "own": '{"timestep_spacing":"trailing"}',
        "bare": "{}",
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": "EDMEulerScheduler"}, "routes.text2img.scheduler: EDMEulerScheduler tells the UNet"),
        ({"scheduler_options": {"use_karras_sigmas": True}}, "routes.text2img.scheduler_options: "),
        (
            {"scheduler": "DDIMScheduler", "scheduler_options": {"clip_samples": False}},
            "DDIMScheduler has no option `clip_samples` (did you mean `clip_sample`?)",
        ),
    ],
)
def test_a_route_that_no_row_could_take_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """Before a row is looked at; how many steps there are is the rows' to say."""
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "x"}])
    spec = job_spec(path, tmp_path / "out", routes={"text2img": {"model": "sd", **changes}})

    with pytest.raises(SpecError) as caught:
        make_survey(spec)

    assert says in str(caught.value)


def test_equal_options_have_one_text() -> None:
    """So that rows with them share a call, whatever order and form they came in."""
    assert options_text(parse_options('{"sigma_min": 1, "steps_offset": 1, "sigma_max": null}')) == (
        options_text({"steps_offset": 1, "sigma_min": 1.0})
    )


@pytest.mark.parametrize(
    "arrow_type", [pa.list_(pa.string()), pa.int64(), pa.struct({"a": pa.list_(pa.int64())})]
)
def test_a_column_that_holds_no_options_is_refused(tmp_path: Path, arrow_type: pa.DataType) -> None:
    """Names and single values are all that options are."""
    rows = [{"prompt": "x", "scheduler_options": None}]
    path = write_rows(tmp_path / "rows.parquet", rows, {"scheduler_options": arrow_type})

    with pytest.raises(SpecError, match="needs JSON text, or a struct or a map"):
        make_survey(job_spec(path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DPMSolverMultistepScheduler", '{"use_beta_sigmas": true, "use_karras_sigmas": true}'),
        ("DDIMScheduler", '{"beta_schedule": "steep"}'),
        ("DDIMScheduler", '{"num_train_timesteps": "many"}'),
    ],
    ids=["ValueError", "NotImplementedError", "TypeError"],
)
def test_a_scheduler_that_cannot_be_built_is_its_rows_fault(name: str, options: str) -> None:
    """Whatever error it is in diffusers: the row's error names the scheduler and the options."""
    with pytest.raises(RowError, match=f"{name} with") as raised:
        pipeline_builder.new_scheduler(diffusers.DDIMScheduler(), name, options)

    assert raised.value.code == "invalid_scheduler"
