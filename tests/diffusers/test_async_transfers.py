"""Copies to a device that nobody waits for, shown on torch's device without memory and on a pretended GPU."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from actors.engine.quirks.async_transfers import on_host, transfers_in_background
from actors.engine.quirks.host_schedules import keep_on_host
from schemas.systems.schedulers import SCHEDULERS
from tests.support.pipelines.operations import Operations
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu

# diffusers 0.42.1 hands torch tensors to numpy 2; a worker only logs that.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

META = torch.device("meta")
TOKENS = torch.arange(6)


@pytest.mark.parametrize(
    "move",
    [
        lambda tensor: tensor.to(META),
        lambda tensor: tensor.to("meta", torch.int32),
        lambda tensor: tensor.to(device="meta", dtype=torch.int32),
        lambda tensor: tensor.to(torch.empty(1, device=META)),
    ],
)
def test_tokens_are_known_without_asking_the_device(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A tensor on the device remembers the one it was copied from: this device could not even be asked."""
    with transfers_in_background(META):
        moved = move(TOKENS)

        assert moved.device == META
        assert on_host(moved) is TOKENS


def test_other_conversions_are_torchs_own() -> None:
    """To another dtype, from the device, and anything once the run is over."""
    plain = torch.Tensor.to

    with transfers_in_background(META):
        cast = TOKENS.to(torch.float32)
        twice = TOKENS.to(META).to(META, torch.int32)

    assert torch.equal(cast, TOKENS.float())
    assert not hasattr(cast, "on_host")
    assert not hasattr(twice, "on_host")
    assert torch.Tensor.to is plain


@pytest.mark.parametrize("source", [torch.arange(6).reshape(2, 3).T, torch.ones(1).expand(4)])
def test_a_copy_to_a_gpu_starts_from_pinned_memory(source: torch.Tensor) -> None:
    """Of a tensor that was expanded too, which torch does not pin: timesteps are, for the rows of a call."""
    with pretended_gpu() as gpu, torch.inference_mode():
        with transfers_in_background(DEVICE):
            moved = source.to(DEVICE)

        assert [event.kind for event in gpu.log.events] == [Kind.COPY]
        assert moved.tolist() == source.tolist()


def test_it_ends_with_an_error_too() -> None:
    """`Tensor.to` is everybody's."""
    plain = torch.Tensor.to

    with pytest.raises(ValueError, match="in the midst"), transfers_in_background(META):
        raise ValueError("in the midst")

    assert torch.Tensor.to is plain


def test_on_a_cpu_nothing_is_different() -> None:
    """Nothing is copied there."""
    plain = torch.Tensor.to

    with transfers_in_background(torch.device("cpu")):
        assert torch.Tensor.to is plain

    assert torch.equal(on_host(TOKENS), TOKENS)


@pytest.mark.parametrize(
    "move",
    [
        lambda tensor: tensor.to(META, torch.float16),
        lambda tensor: tensor.to(device="meta", dtype=torch.float16),
        lambda tensor: tensor.to(torch.empty(1, device=META, dtype=torch.float16)),
    ],
)
def test_a_tensor_is_converted_before_it_is_pinned(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Otherwise it is copied from memory that is not pinned, and the host waits."""
    values = torch.ones(3)

    with transfers_in_background(META), Operations("cpu") as operations:
        moved = move(values)

    assert (moved.device, moved.dtype) == (META, torch.float16)
    assert operations.names.count("aten::_to_copy") == 2


def test_numbers_are_copied_without_waiting_too() -> None:
    """`torch.tensor` with a device is a copy from the host for which torch waits."""
    plain = torch.tensor

    with transfers_in_background(META):
        moved = torch.tensor([1, 2], device=META)
        half = torch.tensor([0.5], dtype=torch.float16, device="meta")
        kept = torch.tensor([1.5])

    assert moved.device == half.device == META
    assert on_host(moved).tolist() == [1, 2]
    assert half.dtype == torch.float16
    assert kept.tolist() == [1.5]
    assert torch.tensor is plain


def test_timesteps_stay_on_the_host_whatever_device_a_pipeline_asks_for() -> None:
    """Shown on torch's device without memory: there is no GPU here."""
    scheduler, plain = DDIMScheduler(), DDIMScheduler()
    keep_on_host(scheduler)

    scheduler.set_timesteps(3, device="meta")
    plain.set_timesteps(3)

    assert scheduler.timesteps.device.type == "cpu"
    assert scheduler.timesteps.tolist() == plain.timesteps.tolist()


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISY = [name for name in SCHEDULERS if hasattr(getattr(diffusers, name), "add_noise")]


def pair(name: str, num_inference_steps: int = 6, **options: Any) -> tuple[Any, Any]:
    """A scheduler of diffusers, and one whose numbers are kept on the host."""
    plain = getattr(diffusers, name)(**BETAS, **options)
    kept = copy.deepcopy(plain)
    keep_on_host(kept)
    for scheduler in (plain, kept):
        scheduler.set_timesteps(num_inference_steps)
    return plain, kept


def seeded(dtype: torch.dtype, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("begin", [None, 2])
def test_added_noise_is_that_of_diffusers(name: str, dtype: torch.dtype, begin: int | None) -> None:
    """At the beginning of an image-to-image call, and at the timesteps of inpainting; to the rounding."""
    plain, kept = pair(name)
    samples, noise = seeded(dtype), seeded(dtype) / 3
    if begin is not None and hasattr(plain, "set_begin_index"):
        plain.set_begin_index(begin)
        kept.set_begin_index(begin)

    for first in (2, 4):
        timesteps = plain.timesteps[first : first + 1].repeat(2)
        ours, theirs = (each.add_noise(samples, noise, timesteps) for each in (kept, plain))
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - theirs).abs().max() <= 2 * torch.finfo(dtype).eps * theirs.abs().max()


def test_rows_with_timesteps_of_their_own_get_noise_of_their_own() -> None:
    """No pipeline asks for that, but it is what add_noise promises."""
    plain, kept = pair("EulerDiscreteScheduler")
    samples, noise = seeded(torch.float32), seeded(torch.float32) / 3

    timesteps = plain.timesteps[[1, 4]]

    assert torch.equal(kept.add_noise(samples, noise, timesteps), plain.add_noise(samples, noise, timesteps))


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_added_on_the_device_by_two_kernels(name: str) -> None:
    """The noise levels stay where they are, so later steps find their numbers on the host."""
    _, kept = pair(name)
    samples = seeded(torch.float16).to(META)

    with Operations("meta") as operations:
        kept.add_noise(samples, samples, kept.timesteps[2:3])

    assert len(operations.names) <= 2
    assert {value.device.type for value in vars(kept).values() if isinstance(value, torch.Tensor)} == {"cpu"}


UNIPC: dict[str, dict[str, Any]] = {
    "as it is": {},
    "order 1": {"solver_order": 1},
    "order 3": {"solver_order": 3},
    "bh1": {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    "noise": {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    "v": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "not corrected at first": {"disable_corrector": [0, 1]},
    "full order at the end": {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
}


def run_on(scheduler: Any, dtype: torch.dtype, first: int = 0) -> torch.Tensor:
    """What a loop makes with a smooth function in the UNet's place, from the step `first` on."""
    sample = seeded(dtype)
    for timestep in scheduler.timesteps[first:]:
        output = torch.tanh(sample.float() * 1.3 + float(timestep) / 1000).to(dtype)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("options", UNIPC.values(), ids=UNIPC)
@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 20])
def test_unipcs_steps_are_those_of_diffusers(options: dict[str, Any], num_inference_steps: int) -> None:
    """But for the last bits of float32: a sum of weighted tensors is rounded in another order."""
    plain, kept = pair("UniPCMultistepScheduler", num_inference_steps, **options)

    expected = run_on(plain, torch.float32)

    assert torch.isfinite(expected).all()
    assert (run_on(kept, torch.float32) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_unipc_begins_in_the_middle_as_diffusers_does() -> None:
    """With the first order again, as there are no outputs before."""
    plain, kept = pair("UniPCMultistepScheduler", 8)
    for scheduler in (plain, kept):
        scheduler.set_begin_index(3)

    expected = run_on(plain, torch.float32, first=3)

    assert (run_on(kept, torch.float32, first=3) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unipc_in_half_precision_is_as_near_to_the_truth(dtype: torch.dtype) -> None:
    """As diffusers' own steps, whose results differ from these by the rounding of the format."""
    plain, kept = pair("UniPCMultistepScheduler", 20)
    truth = run_on(copy.deepcopy(plain), torch.float32)

    own, ours = ((run_on(scheduler, dtype).float() - truth).abs().max() for scheduler in (plain, kept))

    assert ours <= 2 * own


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_computes_its_numbers_on_the_host(order: int) -> None:
    """The device gets sums of latents alone: with order 2 ten kernels a step instead of a hundred."""
    _, kept = pair("UniPCMultistepScheduler", solver_order=order, lower_order_final=False)
    sample = seeded(torch.float16).to(META)
    counts = []

    for timestep in kept.timesteps[:5]:
        with Operations("meta") as operations:
            kept.step(sample, timestep, sample)
        counts.append(len(operations.names))

    assert max(counts) <= 6 + 2 * order


SUMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name.removesuffix("Scheduler"): (name, {})
        for name in (
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "SASolverScheduler",
        )
    },
    "DPM++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ SDE Heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "DPM++ 1": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "DPM++ 3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 3 SDE": ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
    "DPM++ with v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "DPM++ within limits": ("DPMSolverMultistepScheduler", {"thresholding": True}),
    "DPM++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 3S": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "DPM++ 2S SDE": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DEIS 1": ("DEISMultistepScheduler", {"solver_order": 1}),
    "DEIS 3 with v": ("DEISMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    "LMS with v": ("LMSDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    "PLMS with v": ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
    "SASolver with v": ("SASolverScheduler", {"prediction_type": "v_prediction"}),
}
"""Schedulers whose steps are sums of weighted tensors."""


STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name.removesuffix("Scheduler"): (name, {})
        for name in SCHEDULERS
        if name not in {"UniPCMultistepScheduler", *(name for name, _ in SUMS.values())}
    },
    "DDIM with v": ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    "DDIM to the end": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "DDIM trailing": (
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
}


@pytest.mark.parametrize(("name", "options"), SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("num_inference_steps", [2, 3, 7, 20])
def test_sums_are_the_steps_of_diffusers(
    name: str, options: dict[str, Any], num_inference_steps: int
) -> None:
    """But for the last bits of float32: weighted tensors are added up in another order."""
    if name == "PNDMScheduler":
        num_inference_steps = max(4, num_inference_steps)  # Without `skip_prk_steps` it needs so many.
    plain, kept = pair(name, num_inference_steps, **options)

    for more in (0, 1):
        for scheduler in (plain, kept):
            scheduler.set_timesteps(num_inference_steps + more)
        expected, result = (run_with_noise(scheduler, torch.float32) for scheduler in (plain, kept))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in SUMS.values()))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_are_as_near_to_the_truth(name: str, dtype: torch.dtype) -> None:
    """As diffusers' own steps, whose results differ from these by the rounding of the format."""
    plain, kept = pair(name, 20)
    truth = run_with_noise(copy.deepcopy(plain), torch.float32)

    own, ours = (
        (run_with_noise(scheduler, dtype).float() - truth).abs().mean() for scheduler in (plain, kept)
    )

    assert ours <= 1.2 * own


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in SUMS.values()))
def test_sums_that_begin_in_the_middle_are_those_of_diffusers(name: str) -> None:
    """As image-to-image does: the first step has no outputs before it."""
    plain, kept = pair(name, 8)
    for scheduler in (plain, kept):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(3)

    expected, result = (run_with_noise(scheduler, torch.float32, first=3) for scheduler in (plain, kept))

    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize(("name", "options"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_diffusers_to_the_bit(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Whatever of its numbers is remembered."""
    plain, kept = pair(name, 7, **options)

    for _ in range(2):
        expected, result = (run_with_noise(scheduler, dtype) for scheduler in (plain, kept))
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        plain.set_timesteps(7)
        kept.set_timesteps(7)


@pytest.mark.parametrize("arguments", [{"eta": 0.5}, {"use_clipped_model_output": True}, {"eta": 0.0}])
def test_ddims_step_takes_all_arguments(arguments: dict[str, Any]) -> None:
    """Rows with `eta` get its noise."""
    plain, kept = pair("DDIMScheduler", clip_sample=False)

    expected, result = (run_with_noise(scheduler, torch.float32, **arguments) for scheduler in (plain, kept))

    assert torch.equal(result, expected)
    assert inspect.signature(kept.step) == inspect.signature(plain.step)


def run_with_noise(scheduler: Any, dtype: torch.dtype, first: int = 0, **arguments: Any) -> torch.Tensor:
    """What a loop makes with a smooth function in the UNet's place, and noise from a seed."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments["generator"] = torch.Generator().manual_seed(3)
    sample = seeded(dtype) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[first:]:
        seen = scheduler.scale_model_input(sample, timestep)
        output = torch.tanh(seen.float() * 1.3 + float(timestep) / 1000).to(dtype)
        sample = scheduler.step(output, timestep, sample, return_dict=False, **arguments)[0]
    return sample
