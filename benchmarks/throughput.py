"""Pictures a second: loops of plain diffusers, a Ray Data job, darkroom's engine alone, a darkroom worker.

All contenders take turns over the same rows, with the same weights and as many torch threads; a figure is
the median of the rounds. Below stand figures without noise: what went through the modules in one run, and how
full batches were. Last come whole jobs, from the command to the output's last byte.

    python -m benchmarks.throughput                 # small models with random weights, on a CPU
    python -m benchmarks.throughput --gpu --help    # full-size architectures, on a GPU

docs/benchmarks.md says what each contender does, and what each number does not show.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks import gpu, whole_job
from benchmarks.contenders.local_contenders import DARKROOM, R0, R0B, R1, Darkroom, Setting, in_process
from benchmarks.contenders.ray_data import RayDataJob, ray_here, steady
from benchmarks.noise_free import HEADER, cells, line
from benchmarks.race import Contender, race, surroundings, timed
from benchmarks.workloads import DIFFERENT, EQUAL, WORKLOADS, Row
from models.demo_cache import demo_checkpoint

SIDE = 64
"""Pixels: what the small models are made for."""
RAY_DATA = "Ray Data"


class Lanes:
    """The contenders, with what they keep from one workload to the next."""

    def __init__(self, setting: Setting, *, with_ray_data: bool) -> None:
        self.here = (R0, R0B, R1, DARKROOM)
        """In this process."""
        self.names = (R0, R0B, *((RAY_DATA,) if with_ray_data else ()), R1, DARKROOM)
        self.darkroom = Darkroom(setting)
        self._setting = setting
        self._plain = setting.plain()

    def over(self, rows: Sequence[Row], folder: Path) -> dict[str, Contender]:
        """Each with these rows; `folder` is for their files."""
        runs = in_process(self._setting, self._plain, self.darkroom, rows, folder)
        contenders = {name: timed(run, len(rows)) for name, run in runs.items()}
        contenders[RAY_DATA] = steady(self._ray_data(), rows, folder)
        return {name: contenders[name] for name in self.names}

    def _ray_data(self) -> RayDataJob:
        return RayDataJob(
            checkpoint=self._setting.checkpoint,
            family=self._setting.family,
            num_threads=self._setting.num_threads,
            batch_rows=self._setting.batch_rows,
        )


def print_rates(lanes: Lanes, wanted: argparse.Namespace) -> None:
    """The first two tables: rates as they are measured, then what has no noise."""
    print("Pictures a second:\n")
    print(line(["workload", *lanes.names, "darkroom / R0", "darkroom / R1"]))
    print("|---|" + "---|" * (len(lanes.names) + 2))
    noise_free = []
    for workload, make_rows in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as folder:
            contenders = lanes.over(make_rows(wanted.rows, SIDE, wanted.steps), Path(folder))
            rates = race(contenders, wanted.rounds)
        ratios = [rates[DARKROOM] / rates[name] for name in (R0, R1)]
        print(
            line(
                [workload, *(f"{rate:.1f}" for rate in rates.values()), *(f"{each:.2f}" for each in ratios)]
            ),
            flush=True,
        )
        noise_free.append(line([workload, *cells(lanes.darkroom)]))
    print("\nWhat went through darkroom's modules in one run:\n")
    print(line(["workload", *HEADER]))
    print("|---|" + "---|" * len(HEADER))
    print("\n".join(noise_free))


def print_cost_of_variety(lanes: Lanes, wanted: argparse.Namespace) -> None:
    """How much slower rows are for being different: both workloads take turns, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Contender] = {}
        for workload in (EQUAL, DIFFERENT):
            place = Path(folder, workload)
            place.mkdir()
            alone = lanes.over(WORKLOADS[workload](wanted.rows, SIDE, wanted.steps), place)
            contenders |= {f"{name}, {workload}": alone[name] for name in lanes.here}
        rates = race(contenders, wanted.rounds)
    print(f"\n{DIFFERENT.capitalize()}, in turns with {EQUAL}:\n")
    print(line(["", *lanes.here]))
    print("|---|" + "---|" * len(lanes.here))
    for workload in (EQUAL, DIFFERENT):
        print(line([workload, *(f"{rates[f'{name}, {workload}']:.1f}" for name in lanes.here)]))
    ratios = (rates[f"{name}, {DIFFERENT}"] / rates[f"{name}, {EQUAL}"] for name in lanes.here)
    print(line(["ratio", *(f"{ratio:.2f}" for ratio in ratios)]), flush=True)


def main() -> None:
    """Print the tables."""
    wanted = arguments()
    if wanted.gpu is not None:
        gpu.main(wanted.gpu)
        return
    logging.disable(logging.WARNING)
    torch.set_num_threads(wanted.threads)
    setting = Setting(
        checkpoint=demo_checkpoint("sd"),
        family="sd",
        device=torch.device("cpu"),
        dtype="float32",
        num_threads=wanted.threads,
        batch_rows=wanted.batch,
    )
    print(
        f"{surroundings()}; {wanted.threads} torch thread(s), {wanted.rows} rows of {SIDE}x{SIDE} pixels "
        f"and {wanted.steps} steps on average, median of {wanted.rounds} rounds\n"
    )
    with nullcontext() if wanted.no_ray_data else ray_here(wanted.threads):
        lanes = Lanes(setting, with_ray_data=not wanted.no_ray_data)
        print_rates(lanes, wanted)
        print_cost_of_variety(lanes, wanted)
    if wanted.job_rounds:
        print(f"\nWhole jobs of {wanted.job_rows} rows, median of {wanted.job_rounds} rounds:\n")
        whole_job.print_table(
            lambda workload: WORKLOADS[workload](wanted.job_rows, SIDE, wanted.steps),
            *(wanted.threads, wanted.batch, wanted.job_rounds),
        )


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="of each workload (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="mean number of denoising steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's, of every contender (%(default)s)")
    parser.add_argument(
        "--batch", type=int, default=16, help="the largest batch of every contender (%(default)s)"
    )
    parser.add_argument(
        "--no-ray-data", action="store_true", help="leave that contender out: it starts slowly"
    )
    parser.add_argument("--job-rows", type=int, default=256, help="of whole jobs (%(default)s)")
    parser.add_argument("--job-rounds", type=int, default=3, help="of whole jobs; 0: none (%(default)s)")
    parser.add_argument(
        "--gpu",
        nargs=argparse.REMAINDER,
        help="the form for a GPU; what follows are options of its own (--gpu --help)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
