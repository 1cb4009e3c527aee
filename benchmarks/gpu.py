"""Images per second on a GPU, compared with the most that the GPU could do.

The models are Stable Diffusion 1.5 at 512x512 and XL at 1024x1024 in their published sizes, with random
weights. Loops of plain diffusers, darkroom's engine alone and a darkroom worker take turns over the same
rows. Each line of the table shows

- the images per second (the median of the rounds);
- the work in an image, counted on the modules;
- the share of the limit. The limit is the device's rate of large bfloat16 matrix products, divided by the
  work in an image;
- the share of the time in which the GPU worked;
- how often the host waited for the GPU, and the line of code that caused most of the waits.

    python -m benchmarks.throughput --gpu [--models sd15 --dtypes bfloat16 --compile off]
    python -m benchmarks.throughput --gpu --device cpu --tiny      # the same code on small models, anywhere

The whole benchmark takes long, so choose a part of it; each line is printed as soon as it is measured. On a
CPU the last columns mean little.
"""

import argparse
import gc
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.contenders.local_contenders import R0, R0B, Darkroom, Run, Setting, in_process
from benchmarks.device.full_size import full_size_checkpoint
from benchmarks.device.gpu_watch import watch
from benchmarks.device.limits import Work, matrix_rate
from benchmarks.noise_free import HEADER, cells, line
from benchmarks.race import median_rates, surroundings, timed
from benchmarks.workloads import WORKLOADS, Row
from models.demo_cache import demo_checkpoint

SHOWN = ("equal rows", "every row different")
COLUMNS = (
    *("model", "dtype", "compile", "workload", "contender"),
    *("images/s", "TFLOP per image", "share of the limit", "GPU busy", "waits per image", "most from"),
)
LOOP_ROWS = 16
"""How many rows of a loop are profiled: it always does the same, and the profiler records every kernel."""
TINY_SIDE = 64
"""Width and height of an image, in pixels: the size of the small models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that is measured, and the size of its images."""

    family: str
    tiny: str
    """The kind of the demo checkpoint with the same architecture."""
    side: int
    """Width and height of an image, in pixels."""
    num_rows: int
    batch_rows: int


MODELS = {
    "sd15": Model(family="sd", tiny="sd", side=512, num_rows=64, batch_rows=16),
    # A few images of 1024x1024 fill a GPU.
    "sdxl": Model(family="sdxl", tiny="sdxl", side=1024, num_rows=32, batch_rows=8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model with one dtype, compiled or not."""

    name: str
    dtype: str
    compiled: bool
    device: torch.device
    options: argparse.Namespace

    @property
    def side(self) -> int:
        """Width and height of an image, in pixels."""
        return TINY_SIDE if self.options.tiny else MODELS[self.name].side

    def rows(self, workload: str) -> list[Row]:
        """The rows of a workload."""
        num_rows = self.options.rows or MODELS[self.name].num_rows
        return WORKLOADS[workload](num_rows, self.side, self.options.steps)

    def setting(self) -> Setting:
        """The setting of all contenders; its checkpoint is built now if it does not exist yet."""
        model = MODELS[self.name]
        tiny = self.options.tiny
        return Setting(
            checkpoint=demo_checkpoint(model.tiny) if tiny else full_size_checkpoint(self.name, self.device),
            family=model.family,
            device=self.device,
            dtype=self.dtype,
            num_threads=self.options.threads,
            batch_rows=self.options.batch or model.batch_rows,
            compiled=self.compiled,
        )

    def label(self, workload: str) -> list[str]:
        """The first cells of the case's lines."""
        model = f"{'tiny ' if self.options.tiny else ''}{self.name} {self.side}x{self.side}"
        return [model, self.dtype, "on" if self.compiled else "off", workload]


class Bench:
    """The contenders of one case."""

    def __init__(self, case: Case, matrix_tflops: float) -> None:
        self._case = case
        self._matrix_tflops = matrix_tflops
        self._setting = case.setting()
        self._work = Work.of(self._setting.checkpoint, case.side)
        self._plain = self._setting.plain()
        self._darkroom = Darkroom(self._setting)

    def print_lines(self, workload: str) -> str:
        """Print a line for each contender, and return darkroom's line for the table of calls."""
        rows = self._case.rows(workload)
        work = self._work.per_image(rows)
        with tempfile.TemporaryDirectory() as folder:
            runs = in_process(self._setting, self._plain, self._darkroom, rows, Path(folder))
            if self._case.options.no_loops:
                del runs[R0], runs[R0B]
            rates = median_rates(
                {name: timed(run, len(rows)) for name, run in runs.items()}, self._case.options.rounds
            )
            for name, run in self._watched(runs, rows).items():
                watched = watch(run, self._case.device)
                figures = (
                    *(f"{rates[name]:.3g}", f"{work:.3g}", f"{rates[name] * work / self._matrix_tflops:.1%}"),
                    *(f"{watched.busy:.1%}" if watched.busy else "-", f"{watched.waits_per_image:.1f}"),
                    watched.most_waited_at(),
                )
                print(line([*self._case.label(workload), name, *figures]), flush=True)
        return line([*self._case.label(workload), *cells(self._darkroom)])

    def _watched(self, runs: dict[str, Run], rows: Sequence[Row]) -> dict[str, Run]:
        few = rows[:LOOP_ROWS]
        loops = {
            R0: lambda: self._plain.one_by_one(few),
            R0B: lambda: self._plain.grouped(few, self._setting.batch_rows),
        }
        return {name: loops.get(name, run) for name, run in runs.items()}


def cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """All combinations of the chosen models, dtypes and settings of `compile`."""
    for name, dtype, compiled in product(options.models, options.dtypes, options.compile):
        yield Case(name=name, dtype=dtype, compiled=compiled == "on", device=device, options=options)


def main(command_line: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = arguments(command_line)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; to try the script without one, add --device cpu --tiny")
    logging.disable(logging.WARNING)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    limit = matrix_rate(device)
    print(f"{surroundings()}, {name_of(device)}: {limit:,.2f} TFLOP/s in large bfloat16 matrix products\n")
    print(line(COLUMNS))
    print("|" + "---|" * len(COLUMNS), flush=True)
    noise_free = []
    for case in cases(options, device):
        bench = Bench(case, limit)
        noise_free += [bench.print_lines(workload) for workload in SHOWN]
        del bench
        free(device)
    print("\nCalls of darkroom's modules in one run:\n")
    print(line([*COLUMNS[:4], *HEADER]))
    print("|" + "---|" * (4 + len(HEADER)))
    print("\n".join(noise_free))


def name_of(device: torch.device) -> str:
    """The GPU's own name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def free(device: torch.device) -> None:
    """Free the memory of a case's weights before the next case loads its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line, or of the arguments that are given instead of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput --gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=[*MODELS], help="models to measure (both)"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float16", "bfloat16"),
        default=["float16", "bfloat16"],
        help="dtypes to measure (both)",
    )
    parser.add_argument(
        "--compile", nargs="+", choices=("off", "on"), default=["off", "on"], help="batching.compile (both)"
    )
    parser.add_argument("--rows", type=int, help="rows of each workload (64 for sd15, 32 for sdxl)")
    parser.add_argument("--batch", type=int, help="the largest batch (16 for sd15, 8 for sdxl)")
    parser.add_argument("--steps", type=int, default=20, help="mean number of denoising steps (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds that count; one more warms up (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=4, help="darkroom's threads for decoding and encoding (%(default)s)"
    )
    parser.add_argument("--no-loops", action="store_true", help="leave R0 and R0b out: they take the longest")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device (%(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help=f"use the demo's small models, at {TINY_SIDE}x{TINY_SIDE}"
    )
    return parser.parse_args(command_line)


if __name__ == "__main__":
    main()
