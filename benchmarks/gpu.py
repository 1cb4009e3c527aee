"""Pictures a second on a GPU, against what it could do at most.

Stable Diffusion 1.5 at 512x512 and XL at 1024x1024 in their published sizes, with random weights. Loops of
plain diffusers, darkroom's engine alone and a darkroom worker take turns over the same rows. A line has the
pictures a second (the median of the rounds); the share of the limit, which is the device's rate on large
bfloat16 matrix products over the work in a picture, counted on the modules; the share of time in which the
GPU did something; how often the host waited for it, and the line of code that made it wait most.

    python -m benchmarks.throughput --gpu [--models sd15 --dtypes bfloat16 --compile off]
    python -m benchmarks.throughput --gpu --device cpu --tiny      # the same code on small models, anywhere

All of it takes long: choose a part; what is done is printed at once. On a CPU the last columns say little.
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
from benchmarks.race import race, surroundings, timed
from benchmarks.workloads import WORKLOADS, Row
from models.demo_cache import demo_checkpoint

SHOWN = ("equal rows", "every row different")
COLUMNS = (
    *("model", "dtype", "compile", "workload", "contender"),
    *("pictures/s", "TFLOP a picture", "share of the limit", "GPU busy", "waits a picture", "most from"),
)
LOOP_ROWS = 16
"""Over which loops are watched: they do the same all along, and the profiler keeps every kernel."""
TINY_SIDE = 64
"""Pixels: what the small models are made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is measured, and at which size."""

    family: str
    tiny: str
    """The kind of the demo's checkpoint with the same architecture."""
    side: int
    """Pixels."""
    num_rows: int
    batch_rows: int


MODELS = {
    "sd15": Model(family="sd", tiny="sd", side=512, num_rows=64, batch_rows=16),
    # A few pictures of 1024x1024 fill a GPU.
    "sdxl": Model(family="sdxl", tiny="sdxl", side=1024, num_rows=32, batch_rows=8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model in one way."""

    name: str
    dtype: str
    compiled: bool
    device: torch.device
    wanted: argparse.Namespace

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return TINY_SIDE if self.wanted.tiny else MODELS[self.name].side

    def rows(self, workload: str) -> list[Row]:
        """What is to be made."""
        num_rows = self.wanted.rows or MODELS[self.name].num_rows
        return WORKLOADS[workload](num_rows, self.side, self.wanted.steps)

    def setting(self) -> Setting:
        """For all contenders, with a checkpoint that is built now if there is none yet."""
        model = MODELS[self.name]
        tiny = self.wanted.tiny
        return Setting(
            checkpoint=demo_checkpoint(model.tiny) if tiny else full_size_checkpoint(self.name, self.device),
            family=model.family,
            device=self.device,
            dtype=self.dtype,
            num_threads=self.wanted.threads,
            batch_rows=self.wanted.batch or model.batch_rows,
            compiled=self.compiled,
        )

    def label(self, workload: str) -> list[str]:
        """The first cells of its lines."""
        model = f"{'tiny ' if self.wanted.tiny else ''}{self.name} {self.side}x{self.side}"
        return [model, self.dtype, "on" if self.compiled else "off", workload]


class Bench:
    """One case's contenders."""

    def __init__(self, case: Case, matrix_tflops: float) -> None:
        self._case = case
        self._matrix_tflops = matrix_tflops
        self._setting = case.setting()
        self._work = Work.of(self._setting.checkpoint, case.side)
        self._plain = self._setting.plain()
        self._darkroom = Darkroom(self._setting)

    def print_lines(self, workload: str) -> str:
        """A line for each contender; what comes back is darkroom's in the table of figures without noise."""
        rows = self._case.rows(workload)
        work = self._work.an_image(rows)
        with tempfile.TemporaryDirectory() as folder:
            runs = in_process(self._setting, self._plain, self._darkroom, rows, Path(folder))
            if self._case.wanted.no_loops:
                del runs[R0], runs[R0B]
            rates = race(
                {name: timed(run, len(rows)) for name, run in runs.items()}, self._case.wanted.rounds
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


def cases(wanted: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Everything that is wanted."""
    for name, dtype, compiled in product(wanted.models, wanted.dtypes, wanted.compile):
        yield Case(name=name, dtype=dtype, compiled=compiled == "on", device=device, wanted=wanted)


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables."""
    wanted = arguments(given)
    device = torch.device(wanted.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; to try the script without one: --device cpu --tiny")
    logging.disable(logging.WARNING)
    if device.type == "cpu":
        torch.set_num_threads(wanted.threads)
    limit = matrix_rate(device)
    print(f"{surroundings()}, {name_of(device)}: {limit:,.2f} TFLOP/s in large bfloat16 matrix products\n")
    print(line(COLUMNS))
    print("|" + "---|" * len(COLUMNS), flush=True)
    noise_free = []
    for case in cases(wanted, device):
        bench = Bench(case, limit)
        noise_free += [bench.print_lines(workload) for workload in SHOWN]
        del bench
        free(device)
    print("\nWhat went through darkroom's modules in one run:\n")
    print(line([*COLUMNS[:4], *HEADER]))
    print("|" + "---|" * (4 + len(HEADER)))
    print("\n".join(noise_free))


def name_of(device: torch.device) -> str:
    """The GPU's own."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def free(device: torch.device) -> None:
    """Give a case's weights back before the next one's come."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput --gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], help="(both)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float16", "bfloat16"), default=["float16", "bfloat16"], help="(both)"
    )
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off", "on"], help="(both)")
    parser.add_argument("--rows", type=int, help="of each workload (64 of sd15, 32 of sdxl)")
    parser.add_argument("--batch", type=int, help="the largest batch (16 of sd15, 8 of sdxl)")
    parser.add_argument("--steps", type=int, default=20, help="mean number of denoising steps (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="that count; one more warms up (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=4, help="darkroom's for decoding and encoding (%(default)s)"
    )
    parser.add_argument("--no-loops", action="store_true", help="leave R0 and R0b out: they take longest")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help=f"the demo's small models, at {TINY_SIDE}x{TINY_SIDE}"
    )
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
