"""Images per second of plain diffusers loops, a Ray Data job, darkroom's engine alone and a darkroom worker.

All contenders take turns over the same rows, with the same weights and the same number of torch threads. Each
figure is the median of the rounds. The second table has figures that are the same on every machine: the
calls of the modules in one run, and their batch sizes. The last table has whole jobs, from the command to the
output's last byte.

The models are small, with random weights, and run on a CPU. benchmarks/gpu.py measures models of the
published sizes on a GPU.

    python -m benchmarks.throughput

docs/benchmarks.md explains what each contender does, and what the figures do not show.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks import whole_job
from benchmarks.contenders.local_contenders import DARKROOM, R0, R0B, R1, Darkroom, Setting, in_process
from benchmarks.contenders.noise_free import HEADER, cells, line
from benchmarks.contenders.ray_data import RayDataJob, local_ray, steady
from benchmarks.race import Contender, median_rates, surroundings, timed
from benchmarks.workloads import DIFFERENT, EQUAL, WORKLOADS, Row
from models.demo_cache import demo_checkpoint
from schemas.wording.amounts import counted

SIDE = 64
"""Width and height of an image, in pixels: the size of the small models."""
RAY_DATA = "Ray Data"


class Lanes:
    """The contenders, with the models that they keep from one workload to the next."""

    def __init__(self, setting: Setting, *, with_ray_data: bool) -> None:
        self.local_names = (R0, R0B, R1, DARKROOM)
        """The names of the contenders that run in this process."""
        self.names = (R0, R0B, *((RAY_DATA,) if with_ray_data else ()), R1, DARKROOM)
        self.darkroom = Darkroom(setting)
        self._setting = setting
        self._plain = setting.plain()

    def over(self, rows: Sequence[Row], folder: Path) -> dict[str, Contender]:
        """The contenders over these rows, by name; they put their files into `folder`."""
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


def print_rates(lanes: Lanes, options: argparse.Namespace) -> None:
    """Print the first two tables: the measured rates, and the figures that are the same on every machine."""
    print("Images per second:\n")
    print(line(["workload", *lanes.names, "darkroom / R0", "darkroom / R1"]))
    print("|---|" + "---|" * (len(lanes.names) + 2))
    noise_free = []
    for workload, make_rows in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as folder:
            contenders = lanes.over(make_rows(options.rows, SIDE, options.steps), Path(folder))
            rates = median_rates(contenders, options.rounds)
        ratios = [rates[DARKROOM] / rates[name] for name in (R0, R1)]
        print(
            line(
                [workload, *(f"{rate:.1f}" for rate in rates.values()), *(f"{ratio:.2f}" for ratio in ratios)]
            ),
            flush=True,
        )
        noise_free.append(line([workload, *cells(lanes.darkroom)]))
    print("\nCalls of darkroom's modules in one run:\n")
    print(line(["workload", *HEADER]))
    print("|---|" + "---|" * len(HEADER))
    print("\n".join(noise_free))


def print_cost_of_variety(lanes: Lanes, options: argparse.Namespace) -> None:
    """Print how much slower varied rows are than equal rows: both workloads take turns, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Contender] = {}
        for workload in (EQUAL, DIFFERENT):
            workload_folder = Path(folder, workload)
            workload_folder.mkdir()
            by_name = lanes.over(WORKLOADS[workload](options.rows, SIDE, options.steps), workload_folder)
            contenders |= {f"{name}, {workload}": by_name[name] for name in lanes.local_names}
        rates = median_rates(contenders, options.rounds)
    print(f"\n{DIFFERENT.capitalize()}, in turns with {EQUAL}:\n")
    print(line(["", *lanes.local_names]))
    print("|---|" + "---|" * len(lanes.local_names))
    for workload in (EQUAL, DIFFERENT):
        print(line([workload, *(f"{rates[f'{name}, {workload}']:.1f}" for name in lanes.local_names)]))
    ratios = (rates[f"{name}, {DIFFERENT}"] / rates[f"{name}, {EQUAL}"] for name in lanes.local_names)
    print(line(["ratio", *(f"{ratio:.2f}" for ratio in ratios)]), flush=True)


def main() -> None:
    """Print the tables."""
    options = arguments()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    setting = Setting(
        checkpoint=demo_checkpoint("sd"),
        family="sd",
        device=torch.device("cpu"),
        dtype="float32",
        num_threads=options.threads,
        batch_rows=options.batch,
    )
    print(
        f"{surroundings('torch', 'diffusers', 'ray')}; "
        f"{counted(options.threads, 'torch thread')}, {counted(options.rows, 'row')} of "
        f"{SIDE}x{SIDE} pixels and {counted(options.steps, 'step')} on average, "
        f"median of {counted(options.rounds, 'round')}\n"
    )
    with nullcontext() if options.no_ray_data else local_ray(options.threads):
        lanes = Lanes(setting, with_ray_data=not options.no_ray_data)
        print_rates(lanes, options)
        print_cost_of_variety(lanes, options)
    if options.job_rounds:
        rows, rounds = counted(options.job_rows, "row"), counted(options.job_rounds, "round")
        print(f"\nWhole jobs of {rows}, median of {rounds}:\n")
        whole_job.print_table(
            lambda workload: WORKLOADS[workload](options.job_rows, SIDE, options.steps),
            *(options.threads, options.batch, options.job_rounds),
        )


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="rows of each workload (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds that count; one more warms up (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="mean number of denoising steps (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch's threads in every contender (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=16, help="the largest batch of every contender (%(default)s)"
    )
    parser.add_argument("--no-ray-data", action="store_true", help="leave Ray Data out: it starts slowly")
    parser.add_argument("--job-rows", type=int, default=256, help="rows of a whole job (%(default)s)")
    parser.add_argument(
        "--job-rounds", type=int, default=3, help="rounds of whole jobs; 0 leaves them out (%(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
