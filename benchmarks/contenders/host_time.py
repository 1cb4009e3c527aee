"""The host's time for a row-step: what darkroom and diffusers do around a UNet that costs nothing.

A GPU stands still when the host needs longer for a step than the UNet. Each scheduler runs over rows that
all differ, once with few steps and once with many; the difference is the time of the steps alone, without
texts, decoding and loading. The time is that of the thread that generates, on a CPU, with small latents: a
kernel costs the host about as much there as its launch on a GPU.

    python -m benchmarks.contenders.host_time                          # this checkout
    python -m benchmarks.contenders.host_time --beside ../darkroom-old  # and another one, in turns
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
    "LCMScheduler",
)
NUM_ROWS, BATCH_ROWS, SIDE = 32, 16, 32
FEW_STEPS, MANY_STEPS = 6, 26
"""The least steps of a row; each row of a batch has one more than the one before."""
RUNS = 2
"""How often a process measures each number of steps; the least time counts."""


def main(command_line: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contenders.host_time",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout (%(default)s)")
    parser.add_argument("--beside", type=Path, help="another checkout of darkroom, measured in turns")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(command_line)
    if options.once:
        print(json.dumps(measured()))
        return
    trees = [tree for tree in (Path.cwd(), options.beside) if tree]
    rounds = [[_in_process(tree) for tree in trees] for _ in range(options.rounds)]
    heads = ["scheduler", "us a row-step", *(["beside", "ratio"] if options.beside else [])]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in SCHEDULERS:
        times = [median(each[number][name] for each in rounds) for number in range(len(trees))]
        ratio = [f"{times[0] / times[1]:.2f}"] if options.beside else []
        print(f"| {name} | {' | '.join([*(f'{seconds * 1e6:.0f}' for seconds in times), *ratio])} |")


def _in_process(tree: Path) -> dict[str, float]:
    """The seconds of a row-step by scheduler, measured in a new process with this file and that checkout."""
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, __file__, "--once"]
    ended = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    times: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return times


def measured() -> dict[str, float]:
    """The seconds of a row-step by scheduler."""
    # Deferred: another checkout's modules, if this file runs beside it.
    import torch

    from benchmarks.contenders.local_contenders import MODEL, Darkroom, Setting
    from models.demo_cache import build_missing, demo_folder

    torch.set_num_threads(1)
    build_missing(["sd"])
    setting = Setting(
        checkpoint=demo_folder("sd"),
        family="sd",
        device=torch.device("cpu"),
        dtype="float32",
        num_threads=1,
        batch_rows=BATCH_ROWS,
    )
    darkroom = Darkroom(setting)
    _cost_nothing(darkroom.models.get(MODEL).components["unet"])
    with tempfile.TemporaryDirectory() as folder:
        return {name: _of_a_step(name, setting, darkroom, Path(folder)) for name in SCHEDULERS}


def _of_a_step(scheduler: str, setting: Any, darkroom: Any, folder: Path) -> float:
    seconds = []
    for steps in (FEW_STEPS, MANY_STEPS):
        path = folder / f"{scheduler}-{steps}.parquet"
        run = darkroom.in_memory(setting.plan(_write_rows(path, scheduler, steps), folder / "out"))
        run()
        seconds.append(min(_seconds(run) for _ in range(RUNS)))
    return (seconds[1] - seconds[0]) / (NUM_ROWS * (MANY_STEPS - FEW_STEPS))


def _seconds(run: Any) -> float:
    begun = time.thread_time()
    run()
    return time.thread_time() - begun


def _write_rows(path: Path, scheduler: str, least_steps: int) -> Path:
    from benchmarks.workloads import different, write_rows

    rows = [
        row | {"scheduler": scheduler, "num_inference_steps": least_steps + number % BATCH_ROWS}
        for number, row in enumerate(different(NUM_ROWS, SIDE, 2))
    ]
    return write_rows(path, rows)


def _cost_nothing(unet: Any) -> None:
    """Let the UNet return zeros, which are made once for each shape."""
    outputs: dict[object, Any] = {}
    forward = unet.forward

    @wraps(forward)
    def zeros(*args: Any, **kwargs: Any) -> Any:
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        if sample.shape not in outputs:
            outputs[sample.shape] = sample.new_zeros(sample.shape)
        return (outputs[sample.shape],)

    unet.forward = zeros


if __name__ == "__main__":
    main()
