"""The contenders of one case on a GPU, each with the few rows that warm it up."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contenders.local_contenders import DARKROOM, R0, R0B, R1, Darkroom, Run, in_process
from benchmarks.device.built_model import BuiltModel
from benchmarks.device.limits import Work
from benchmarks.sitting.gpu_cases import KERNEL_CHOICES, Case, typical
from benchmarks.workloads import DIFFERENT, Row

CONTENDERS = {"r0": R0, "r0b": R0B, "darkroom": DARKROOM, "r1": R1}
"""The contenders in the order of the table, by their short names on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One contender over the rows of one workload."""

    warm: Run
    """A run over one batch, which compiles what there is to compile."""
    run: Run
    rows: Sequence[Row]
    """The rows of `run`."""
    work: float
    """The mean work in an image of these rows, in TFLOP."""


def names(case: Case, workload: str, chosen: Sequence[str]) -> list[str]:
    """The contenders of a workload.

    Where every row is different, the loop over groups is the plain loop. The loops have no choice of kernels.
    """
    left_out = {R0B} if workload == DIFFERENT else set()
    if case.part == KERNEL_CHOICES:
        left_out = {R0, R0B}
    return [name for short, name in CONTENDERS.items() if short in chosen and name not in left_out]


class Bench:
    """The contenders of one case, with the models that they keep."""

    def __init__(self, case: Case, built: BuiltModel, folder: Path) -> None:
        self._case = case
        self._folder = folder
        self._setting = case.setting(built)
        self._work = Work.of(built.folder, case.side)
        self._plain = self._setting.plain()
        self.darkroom = Darkroom(self._setting)

    def lane(self, name: str, workload: str) -> Lane:
        """The contender with this name over the workload."""
        rows = self._case.rows(workload)
        batch = rows[: self._case.batch_rows]
        if name == R0:
            rows = typical(rows, self._case.model.loop_rows)
            batch = rows[:1]
        if name == R0B:
            rows = batch
        warm, run = (self._run(name, part, f"{workload}, {len(part)}") for part in (batch, rows))
        return Lane(warm=warm, run=run, rows=rows, work=self._work.per_image(rows))

    def _run(self, name: str, rows: Sequence[Row], folder_name: str) -> Run:
        folder = self._folder / folder_name
        folder.mkdir(exist_ok=True)
        return in_process(self._setting, self._plain, self.darkroom, rows, folder)[name]


def free(device: torch.device) -> None:
    """Free the memory of a case's weights before the next case copies its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
