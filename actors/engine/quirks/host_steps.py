"""Steps of DDIM and UniPC whose numbers are computed on the host, and only once for equal schedules."""

from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
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
"""The weights of the sample, of the newest model output and of those before it; when a sample is corrected,
also of the output at the corrected sample."""


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


def _sum(weights: Weights, tensors: list[torch.Tensor]) -> torch.Tensor:
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
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
