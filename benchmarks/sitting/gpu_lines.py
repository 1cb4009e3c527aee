"""The table of a GPU: each line is measured within what is left of the budget, and printed at once."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from benchmarks.contenders.local_contenders import DARKROOM, Run
from benchmarks.contenders.noise_free import HEADER, cells, line
from benchmarks.device.built_model import BuiltModel
from benchmarks.device.gpu_watch import Watched, watch
from benchmarks.device.limits import synchronize
from benchmarks.device.time_budget import Budget, OutOfTime
from benchmarks.sitting.gpu_bench import Bench, Lane, free, names
from benchmarks.sitting.gpu_cases import Case

LABELS = ("model", "dtype", "compile", "kernels", "workload")
FIGURES = ("images/s", "TFLOP per image", "share of the limit", "GPU busy", "waits per image", "most from")
MAX_ROUNDS = 5
"""How often a contender runs at most, where the budget allows that."""
WATCHING = 3
"""How many times as long a run may take with the profiler."""
SPENT = "left out: the budget is spent"
COLUMNS = (*LABELS, "contender", *FIGURES)


@dataclass(slots=True, kw_only=True)
class Measured:
    """What is known of a line so far."""

    lane: Lane | None = None
    seconds: list[float] = field(default_factory=list)
    """The time of each round."""
    watched: Watched | None = None

    def figures(self, matrix_tflops: float) -> list[str]:
        """The cells of the line; `-` for what is not known."""
        if self.lane is None or not self.seconds:
            return ["-"] * len(FIGURES)
        rate, work = len(self.lane.rows) / median(self.seconds), self.lane.work
        rates = [f"{rate:.3g}", f"{work:.3g}", f"{rate * work / matrix_tflops:.1%}"]
        watched = self.watched
        if watched is None:
            return [*rates, *("-",) * 3]
        busy = f"{watched.busy:.1%}" if watched.busy else "-"
        return [*rates, busy, f"{watched.waits_per_image:.1f}", watched.most_waited_at()]


class Sitting:
    """Measures the lines of all cases one after the other until the budget is spent."""

    def __init__(
        self, cases: Sequence[Case], contenders: Sequence[str], budget: Budget, matrix_tflops: float
    ) -> None:
        self._cases = cases
        self._contenders = contenders
        self._budget = budget
        self._matrix_tflops = matrix_tflops
        self._lines_left = [
            [*case.label(workload), name]
            for case in cases
            for workload in case.workloads
            for name in names(case, workload, contenders)
        ]
        """The first cells of the lines that are not printed yet."""
        self._folders: list[str] = []
        self._built: dict[tuple[str, str], BuiltModel] = {}
        self._costs: dict[tuple[str, str], float] = {}
        """The seconds that a contender needed to measure a row's TFLOP, by model and contender."""
        self._counts: list[str] = []

    def print_table(self) -> None:
        """Print a line for each contender of each case, and the calls of darkroom's modules."""
        print(line(COLUMNS))
        print("|" + "---|" * len(COLUMNS), flush=True)
        for case in self._cases:
            with tempfile.TemporaryDirectory() as folder:
                self._folders.append(folder)
                if self._measure_case(case, Path(folder)):
                    free(case.device)
        self._print_counts()

    def _print_counts(self) -> None:
        print("\nCalls of darkroom's modules in one run:\n")
        print(line([*LABELS, *HEADER]))
        print("|" + "---|" * (len(LABELS) + len(HEADER)))
        print("\n".join(self._counts), flush=True)

    def _measure_case(self, case: Case, folder: Path) -> bool:
        """Print the case's lines. False: no time was left to begin it, so that nothing is to be freed."""
        bench: Bench | None = None
        for workload in case.workloads:
            for name in names(case, workload, self._contenders):
                measured = Measured()
                try:
                    with self._budget.interrupting(self._give_up):
                        bench = bench or Bench(case, self._model(case), folder)
                        measured.lane = bench.lane(name, workload)
                        self._measure(case, name, measured)
                    figures = measured.figures(self._matrix_tflops)
                except OutOfTime:
                    figures = self._without(measured, SPENT)
                except _TooLongError as error:
                    figures = self._without(measured, f"left out: {error}")
                except Exception as error:  # One contender must not end the others.
                    logging.getLogger(__name__).debug("a contender failed", exc_info=True)
                    figures = self._without(measured, f"failed: {_in_a_cell(error)}")
                self._print_line(figures)
                if bench and name == DARKROOM and measured.seconds:
                    self._counts.append(line([*case.label(workload), *cells(bench.darkroom)]))
        return bench is not None

    def _print_line(self, figures: Sequence[str]) -> None:
        print(line([*self._lines_left.pop(0), *figures]), flush=True)

    def _give_up(self) -> None:
        """Print what is left of the table, and end the process, one of whose threads does not end."""
        while self._lines_left:
            self._print_line(self._without(Measured(), SPENT))
        self._print_counts()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    def _without(self, measured: Measured, reason: str) -> list[str]:
        """The cells of a line that is not complete, whose last one says why."""
        return [*measured.figures(self._matrix_tflops)[:-1], reason]

    def _model(self, case: Case) -> BuiltModel:
        """The case's model, which is built once and kept in memory."""
        key = (case.name, case.dtype)
        if key not in self._built:
            self._folders.append(tempfile.mkdtemp(prefix="darkroom-"))
            self._built[key] = case.built(Path(self._folders[-1]))
        return self._built[key]

    def _measure(self, case: Case, name: str, measured: Measured) -> None:
        """Warm the contender up, time rounds for its share of the budget, and watch it once."""
        lane = measured.lane
        assert lane is not None
        key, tflop = (case.name, name), lane.work * len(lane.rows)
        needed = self._costs.get(key, 0) * tflop
        if needed > (left := self._budget.left_s):
            raise _TooLongError(f"it takes about {needed:.0f} s, and {left:.0f} s are left")
        # Half a share: some lines take longer than theirs.
        until = left - left / (2 * len(self._lines_left))
        warm = _seconds(lane.warm, case.device)
        num_rows = len(lane.rows)
        for _ in range(MAX_ROUNDS):
            measured.seconds.append(_seconds(lane.run, case.device, num_rows))
            if self._budget.left_s - (1 + WATCHING) * measured.seconds[-1] < until:
                break
        if WATCHING * measured.seconds[-1] > self._budget.left_s:
            raise _TooLongError("no time is left to watch it")
        begun = time.perf_counter()
        measured.watched = watch(lane.run, median(measured.seconds), case.device)
        once = warm + median(measured.seconds) + time.perf_counter() - begun
        self._costs[key] = min(once / tflop, self._costs.get(key, once / tflop))


class _TooLongError(Exception):
    """A line needs more time than is left."""


def _seconds(run: Run, device: torch.device, num_rows: int | None = None) -> float:
    """How long a run takes; RuntimeError if it does not generate `num_rows` images."""
    synchronize(device)
    begun = time.perf_counter()
    num_images = run()
    synchronize(device)
    if num_rows not in (None, num_images):
        raise RuntimeError(f"{num_images} of {num_rows} rows were generated")
    return time.perf_counter() - begun


def _in_a_cell(error: Exception) -> str:
    """The error's type and the first line of its message, as a cell of a Markdown table."""
    message = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {message}"[:200].replace("|", "/")
