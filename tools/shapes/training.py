"""The training loop of every stage, which can be stopped at any time and resumes where it stopped."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

LossOf = Callable[[nn.ModuleDict, np.random.Generator], torch.Tensor]
"""The loss of the modules on a random batch."""

WARM_UP_STEPS = 200
COOL_DOWN = 0.3
"""The share of the steps, at the end, in which the learning rate falls to 0."""
LOG_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The settings of one stage of the training."""

    name: str
    num_steps: int
    learning_rate: float
    ema_decay: float = 0.999
    """The share of the averaged weights that each step keeps; the averaged weights are the result."""
    seed: int = 0
    save_every_s: float = 60


def quick_precision() -> torch.autocast:
    """Computation in bfloat16 where the processor has it; others take 15 times as long as in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu.get_capabilities()["avx512_bf16"])


def train(stage: Stage, modules: nn.ModuleDict, loss_of: LossOf, folder: Path) -> nn.ModuleDict:
    """Train the modules, and return them with the average of their weights over the last steps.

    The checkpoint and the log are in `folder`. A stage that is already finished is only loaded.
    """
    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(stage.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    path = folder / f"{stage.name}.pt"
    state = {"modules": modules, "average": average, "optimizer": optimizer}
    step, spent_s = _load(path, state)
    started, saved, losses = time.monotonic(), time.monotonic(), []
    modules.train()
    while step < stage.num_steps:
        loss = _step(stage, step, modules, loss_of, optimizer)
        average.update_parameters(modules)
        losses.append(loss)
        step += 1
        now = time.monotonic()
        if step % LOG_EVERY == 0 or step == stage.num_steps:
            _log(folder, stage, step, float(np.mean(losses)), spent_s + now - started)
            losses = []
        if now - saved > stage.save_every_s or step == stage.num_steps:
            _save(path, state, step, spent_s + now - started)
            saved = now
    return average.module.eval().requires_grad_(False)


def _step(
    stage: Stage, step: int, modules: nn.ModuleDict, loss_of: LossOf, optimizer: torch.optim.Optimizer
) -> float:
    """Run one training step and return its loss; its randomness depends only on the seed and the step."""
    torch.manual_seed(stage.seed * 1_000_000 + step)
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate * _learning_rate_share(step, stage.num_steps)
    loss = loss_of(modules, np.random.default_rng((stage.seed, step)))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _learning_rate_share(step: int, num_steps: int) -> float:
    """The share of the full learning rate in this step: it rises, stays at 1, and falls at the end."""
    return min(1, (step + 1) / WARM_UP_STEPS, (num_steps - step) / (COOL_DOWN * num_steps))


def _load(path: Path, state: dict) -> tuple[int, float]:
    """Load the checkpoint into `state`, and return its number of steps and its training time in seconds."""
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["spent_s"]


def _save(path: Path, state: dict, step: int, spent_s: float) -> None:
    """Replace the checkpoint atomically: if the machine stops while saving, the older one remains."""
    unfinished = path.with_suffix(".new")
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save(parts | {"step": step, "spent_s": spent_s}, unfinished)
    os.replace(unfinished, path)


def _log(folder: Path, stage: Stage, step: int, loss: float, spent_s: float) -> None:
    line = {"stage": stage.name, "step": step, "of": stage.num_steps, "loss": round(loss, 5)}
    line |= {"spent_s": round(spent_s, 1)}
    print(json.dumps(line), flush=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
