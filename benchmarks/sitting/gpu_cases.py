"""What is measured on a GPU: the models, the settings and the rows."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.contenders.local_contenders import Setting
from benchmarks.device.built_model import BuiltModel
from benchmarks.device.full_size import full_size_pipeline, tiny_pipeline
from benchmarks.workloads import DIFFERENT, EQUAL, WORKLOADS, Row, few_steps

FEW_STEPS = "LCM"
NUM_FEW_STEPS = 4
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
    loop_rows: int
    """How many rows the loop of single calls generates: it always does the same."""

    def small(self) -> "Model":
        """The small model of the same architecture, with so few rows that a CPU takes a second for them."""
        return replace(self, side=TINY_SIDE, num_rows=8, batch_rows=4, loop_rows=2)


MODELS = {
    "sd15": Model(family="sd", tiny="sd", side=512, num_rows=64, batch_rows=16, loop_rows=6),
    # A few images of 1024x1024 fill a GPU.
    "sdxl": Model(family="sdxl", tiny="sdxl", side=1024, num_rows=24, batch_rows=8, loop_rows=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model with one dtype, compiled or not, and the workloads that it is measured with."""

    name: str
    dtype: str
    compiled: bool
    workloads: Sequence[str]
    device: torch.device
    options: argparse.Namespace

    @property
    def model(self) -> Model:
        """The model's sizes."""
        model = MODELS[self.name]
        return model.small() if self.options.tiny else model

    @property
    def side(self) -> int:
        """Width and height of an image, in pixels."""
        return self.model.side

    @property
    def batch_rows(self) -> int:
        """The largest batch."""
        return self.options.batch or self.model.batch_rows

    def rows(self, workload: str) -> list[Row]:
        """The rows of a workload."""
        num_rows = self.options.rows or self.model.num_rows
        if workload == FEW_STEPS:
            return few_steps(num_rows, self.side, NUM_FEW_STEPS)
        return WORKLOADS[workload](num_rows, self.side, self.options.steps)

    def built(self, folder: Path) -> BuiltModel:
        """The model in memory; its configuration is written to `folder`."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.options.tiny:
            return BuiltModel.of(tiny_pipeline(self.model.tiny, self.device, dtype), folder)
        return BuiltModel.of(full_size_pipeline(self.name, self.device, dtype), folder)

    def setting(self, built: BuiltModel) -> Setting:
        """The setting of all contenders."""
        return Setting(
            checkpoint=built.folder,
            family=self.model.family,
            device=self.device,
            dtype=self.dtype,
            num_threads=self.options.threads,
            batch_rows=self.batch_rows,
            compiled=self.compiled,
            built=built,
        )

    def label(self, workload: str) -> list[str]:
        """The first cells of the case's lines."""
        model = f"{'tiny ' if self.options.tiny else ''}{self.name} {self.side}x{self.side}"
        steps = NUM_FEW_STEPS if workload == FEW_STEPS else self.options.steps
        return [model, self.dtype, "on" if self.compiled else "off", f"{workload}, {steps} steps"]


def cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """All combinations of the chosen models, dtypes and settings of `compile`.

    Those that matter most come first: what the budget leaves out is at the end.
    """
    for workloads in ((EQUAL, DIFFERENT), (FEW_STEPS,)):
        for compiled, dtype, name in product(options.compile, options.dtypes, options.models):
            yield Case(
                name=name,
                dtype=dtype,
                compiled=compiled == "on",
                workloads=workloads,
                device=device,
                options=options,
            )


def typical(rows: Sequence[Row], number: int) -> list[Row]:
    """A few of the rows that have about the mean number of steps: the middles of equal parts, by steps."""
    by_steps = sorted(rows, key=lambda row: row["num_inference_steps"])
    number = min(number, len(rows))
    return [by_steps[len(rows) * (2 * i + 1) // (2 * number)] for i in range(number)]
