"""Steps of schedulers whose numbers are computed on the host, and only once for equal schedules."""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import count
from math import isfinite
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

DDIMNumbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""The factors of the sample, of the noise in it, of the image at the next step and of the noise in that."""

_MAX_REMEMBERED = 100_000
"""The most steps whose numbers are remembered; a schedule has at most a thousand."""

_ddim_numbers: dict[tuple[int, int, int], tuple[Any, DDIMNumbers]] = {}
"""By configuration and timesteps; with the configuration, so that its id stays its own."""


@wraps(DDIMScheduler.step)
def ddim_step(
    self: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A `step` for a subclass of DDIMScheduler, equal to diffusers' to the bit.

    diffusers 0.42.1 computes eighteen numbers at each step, which takes the host longer than to begin the six
    kernels. This is for pipelines' usual calls; for others, such as with `eta`, diffusers' own runs.
    """
    config, number = self.config, int(timestep)
    is_plain = not args and not any(value for name, value in kwargs.items() if name not in _WITHOUT_EFFECT)
    if not is_plain or config.prediction_type != "epsilon" or config.thresholding or config.clip_sample:
        return DDIMScheduler.step(self, model_output, number, sample, *args, **kwargs)
    sample_root, noise_root, next_root, next_noise_root = _numbers_of(self, config, number)
    original = (sample - noise_root * model_output) / sample_root
    previous = next_root * original + next_noise_root * model_output
    if not kwargs.get("return_dict", True):
        return previous, original
    return DDIMSchedulerOutput(prev_sample=previous, pred_original_sample=original)


_WITHOUT_EFFECT = ("generator", "return_dict")
"""Arguments that change no tensor if `eta` is 0."""


def _numbers_of(scheduler: Any, config: Any, timestep: int) -> DDIMNumbers:
    following = timestep - config.num_train_timesteps // scheduler.num_inference_steps
    key = id(config), timestep, following
    if key not in _ddim_numbers:
        if len(_ddim_numbers) >= _MAX_REMEMBERED:
            _ddim_numbers.clear()
        alphas = scheduler.alphas_cumprod
        alpha, next_alpha = (
            alphas[timestep],
            alphas[following] if following >= 0 else scheduler.final_alpha_cumprod,
        )
        roots = (alpha**0.5, (1 - alpha) ** 0.5, next_alpha**0.5, (1 - next_alpha) ** 0.5)
        _ddim_numbers[key] = config, roots
    return _ddim_numbers[key][1]


Weights = list[float]
"""The weights of tensors that are added up. UniPC's are those of the sample, of the newest model output and
of those before it; when a sample is corrected, also of the output at the corrected sample."""


def _predict(self: Any, model_output: torch.Tensor, *, sample: torch.Tensor, order: int) -> torch.Tensor:
    """Replaces `multistep_uni_p_bh_update`, which gives the sample of the next step."""
    if self.solver_p or self.config.use_flow_sigmas:
        return UniPCMultistepScheduler.multistep_uni_p_bh_update(  # type: ignore[no-any-return]
            self, model_output, sample=sample, order=order
        )
    weights = _weights(self, order, corrects=False)[self.step_index]
    return _sum(weights, [sample, *_newest(self, order)])


def _correct(
    self: Any,
    this_model_output: torch.Tensor,
    *,
    last_sample: torch.Tensor,
    this_sample: torch.Tensor,
    order: int,
) -> torch.Tensor:
    """Replaces `multistep_uni_c_bh_update`, which corrects a sample by the model's output for it."""
    if self.config.use_flow_sigmas:
        return UniPCMultistepScheduler.multistep_uni_c_bh_update(  # type: ignore[no-any-return]
            self, this_model_output, last_sample=last_sample, this_sample=this_sample, order=order
        )
    weights = _weights(self, order, corrects=True)[self.step_index - 1]
    return _sum(weights, [last_sample, *_newest(self, order), this_model_output])


UNIPC_UPDATES = {"multistep_uni_p_bh_update": _predict, "multistep_uni_c_bh_update": _correct}
"""Methods for a subclass of UniPCMultistepScheduler.

diffusers 0.42.1 copies noise levels to the device one by one, and computes there with single numbers: over a
hundred kernels for each step of each row. It also solves a system of equations there, and the host waits.
"""


def _newest(scheduler: Any, order: int) -> list[torch.Tensor]:
    return scheduler.model_outputs[: -order - 1 : -1]  # type: ignore[no-any-return]


def _sum(weights: Weights, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the weighted tensors, in a kernel for each whose weight is neither 0 nor a leading 1."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight]
    (weight, total), *others = terms or [(0.0, tensors[0])]
    total = total if weight == 1 else weight * total
    for weight, tensor in others:
        total = torch.add(total, tensor, alpha=weight)
    return total


def _weights(scheduler: Any, order: int, *, corrects: bool) -> list[Weights]:
    """The weights for a step from each of the scheduler's noise levels to the next."""
    config = scheduler.config
    sigmas = scheduler.sigmas.numpy().tobytes()
    return _computed_weights(sigmas, order, corrects, scheduler.predict_x0, config.solver_type)


@lru_cache(maxsize=1024)
def _computed_weights(
    sigmas: bytes, order: int, corrects: bool, predict_x0: bool, solver_type: str
) -> list[Weights]:
    """The formulas of diffusers 0.42.1 in its order and in float32, but for all steps at once.

    Rows for steps that have no `order` outputs before them have no meaning.
    """
    levels = torch.from_numpy(np.frombuffer(sigmas, np.float32).copy())
    alpha = 1 / ((levels**2 + 1) ** 0.5)
    sigma = levels * alpha
    lam = torch.log(alpha) - torch.log(sigma)
    h = lam[1:] - lam[:-1]
    ratios = [(lam.roll(back)[:-1] - lam[:-1]) / h for back in range(1, order)]
    hh = -h if predict_x0 else h
    h_phi_1 = torch.expm1(hh)
    b_h = hh if solver_type == "bh1" else h_phi_1
    rhos = _rhos([*ratios, torch.ones_like(h)], hh, b_h, corrects)
    of_sample, of_output = (sigma, alpha) if predict_x0 else (alpha, sigma)
    scale = of_output[1:] * b_h
    weights = [-scale * rho / ratio for rho, ratio in zip(rhos, ratios, strict=False)]
    if corrects:
        weights.append(-scale * rhos[-1])
    newest = -of_output[1:] * h_phi_1 - sum(weights)
    return torch.stack([of_sample[1:] / of_sample[:-1], newest, *weights], dim=1).tolist()


def _rhos(
    ratios: list[torch.Tensor], hh: torch.Tensor, b_h: torch.Tensor, corrects: bool
) -> list[torch.Tensor]:
    """The weights of the differences between outputs, each for all steps."""
    order, factorial = len(ratios), 1
    if order == (1 if corrects else 2):
        return [torch.full_like(hh, 0.5)]
    h_phi_k, rows, right = torch.expm1(hh) / hh - 1, [], []
    for i in range(1, order + 1):
        rows.append(torch.stack(ratios, dim=1) ** (i - 1))
        right.append(h_phi_k * factorial / b_h)
        factorial *= i + 1
        h_phi_k = h_phi_k / hh - 1 / factorial
    last = order if corrects else order - 1
    if not last:
        return []
    matrix, vector = torch.stack(rows, dim=1)[:, :last, :last], torch.stack(right, dim=1)[:, :last]
    # Without a check: rows that have no meaning may have no solution.
    return [*torch.linalg.solve_ex(matrix, vector).result.unbind(dim=1)]


SOLVER_UPDATES = (
    "convert_model_output",
    "dpm_solver_first_order_update",
    *(
        f"{kind}_dpm_solver_{order}_order_update"
        for kind in ("multistep", "singlestep")
        for order in ("second", "third")
    ),
    "deis_first_order_update",
    *(f"multistep_deis_{order}_order_update" for order in ("second", "third")),
)
"""Methods of the DPM-Solvers, DEIS, UniPC and SASolver that add up weighted tensors: `as_a_sum`."""

_weights_of_units: dict[tuple[object, ...], Weights] = {}
"""By update, schedule, step and number of tensors."""


def as_a_sum(update: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An update that adds up its tensors in a kernel each, with the weights of diffusers' own formulas.

    diffusers 0.42.1 computes a dozen numbers for each update, and asks the device for two to three kernels a
    tensor. The formulas are linear, so that unit vectors in place of the tensors give the weights. The result
    differs from diffusers' by rounding. The scheduler's `schedule` is its `schedule_number`.
    """

    @wraps(update)
    def summed(self: Any, outputs: Any, *args: Any, **named: Any) -> torch.Tensor:
        config = self.config
        sample, noise = named.get("sample"), named.get("noise")
        is_learned = str(config.get("variance_type")).startswith("learned")
        if args or sample is None or named.keys() - {"sample", "noise"} or config.thresholding or is_learned:
            return update(self, outputs, *args, **named)
        several = outputs if isinstance(outputs, list) else [outputs]
        tensors = [sample, *(output for output in several if output is not None)]
        tensors += [] if noise is None else [noise]

        def of_units(unit: Callable[[], torch.Tensor]) -> torch.Tensor:
            units = {"sample": unit()}
            each = [None if output is None else unit() for output in several]
            units |= {} if noise is None else {"noise": unit()}
            return update(self, each if isinstance(outputs, list) else each[0], **units)

        key = update, self.schedule, self.step_index, len(several)
        weights = _remembered_weights(key, of_units, len(tensors))
        if not all(map(isfinite, weights)):
            return update(self, outputs, *args, **named)
        return _sum(weights, tensors)

    return summed


_schedule_numbers = count()


def schedule_number(scheduler: Any) -> int:
    """A number for the scheduler's configuration and noise levels, which are those of all steps.

    It is not the configuration's id: some schedulers of diffusers 0.42.1 get a new one when steps are set.
    """
    levels = getattr(scheduler, "sigmas", scheduler.alphas_cumprod)
    return _number_of(repr(sorted(scheduler.config.items())), levels.numpy().tobytes())


@lru_cache(maxsize=1024)
def _number_of(config: str, levels: bytes) -> int:
    return next(_schedule_numbers)


def _remembered_weights(
    key: tuple[object, ...], of_units: Callable[[Callable[[], torch.Tensor]], torch.Tensor], number: int
) -> Weights:
    """The weights of `number` tensors, in the order in which `of_units` asks for their unit vectors."""
    key = (*key, number)
    if key not in _weights_of_units:
        if len(_weights_of_units) >= _MAX_REMEMBERED:
            _weights_of_units.clear()
        units = iter(torch.eye(number))
        _weights_of_units[key] = of_units(lambda: next(units)).tolist()
    return _weights_of_units[key]


def summed_pndm_update(
    self: Any, sample: torch.Tensor, timestep: int, prev_timestep: int, model_output: torch.Tensor
) -> torch.Tensor:
    """Replaces PNDM's `_get_prev_sample`, as `as_a_sum` does for others."""
    update = PNDMScheduler._get_prev_sample
    weights = _remembered_weights(
        (update, self.schedule, timestep, prev_timestep),
        lambda unit: update(self, unit(), timestep, prev_timestep, unit()),
        2,
    )
    return _sum(weights, [sample, model_output])


def summed_lms_step(
    self: Any,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    order: int = 4,
    return_dict: bool = True,
) -> Any:
    """Replaces LMS' `step`, which integrates its coefficients anew at each step of each row."""
    if return_dict or self.step_index is None:
        return LMSDiscreteScheduler.step(self, model_output, timestep, sample, order, return_dict)
    before = self.derivatives[-order + 1 :] if order > 1 else []
    units = copy.copy(self)

    def of_units(unit: Callable[[], torch.Tensor]) -> torch.Tensor:
        output, of_sample = unit(), unit()
        units.derivatives = [unit() for _ in before]
        previous, _ = LMSDiscreteScheduler.step(units, output, timestep, of_sample, order, return_dict=False)
        return torch.cat([previous, units.derivatives[-1][:2]])

    key = LMSDiscreteScheduler, self.schedule, self.step_index, order
    weights = _remembered_weights(key, of_units, 2 + len(before))
    *of_all, output_weight, sample_weight = weights
    self.derivatives = [*before, _sum([output_weight, sample_weight], [model_output, sample])]
    self._step_index += 1
    # The sample comes last: its noise is much larger than a step, and each sum with it is rounded so much.
    return (_sum([of_all[0], *of_all[2:], of_all[1]], [model_output, *before, sample]),)
