"""What is measured on a GPU: the models, the settings and the rows."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.local_contenders import Setting
from benchmarks.device.built_model import BuiltModel
from benchmarks.device.full_size import full_size_pipeline, tiny_pipeline
from benchmarks.workloads import DIFFERENT, EQUAL, WORKLOADS, Row, few_steps

KERNELS: Mapping[str, Sequence[str | bool]] = {
    "attention": ("cudnn", "flash", "efficient"),
    "fuse_qkv": (True,),
    "channels_last": (True, False),
    "cudnn_benchmark": (True,),
    "float32": ("tf32", "ieee"),
    "vae_dtype": ("bfloat16",),
}
"""The keys of the spec's section `kernels`, with the values that are measured beside the default."""
OF_FLOAT32 = ("float32", "vae_dtype")
"""Those that matter where float16 leaves something in float32: with XL, whose VAE it does not hold."""
FEW_STEPS = "LCM"
NUM_FEW_STEPS = 4
KERNEL_CHOICES = "kernels"
PARTS = {"rows": (EQUAL, DIFFERENT), "lcm": (FEW_STEPS,), KERNEL_CHOICES: (EQUAL,)}
"""The workloads of each part of the table."""
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
    """One model with one dtype, compiled or not, with one choice of kernels, in one part of the table."""

    name: str
    dtype: str
    compiled: bool
    kernels: Mapping[str, Any] = field(default_factory=dict)
    """The section `kernels` of the spec."""
    part: str
    """A key of PARTS."""
    device: torch.device
    options: argparse.Namespace

    @property
    def workloads(self) -> Sequence[str]:
        """The workloads that the case is measured with."""
        return PARTS[self.part]

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
            kernels=self.kernels,
            built=built,
        )

    def label(self, workload: str) -> list[str]:
        """The first cells of the case's lines."""
        model = f"{'tiny ' if self.options.tiny else ''}{self.name} {self.side}x{self.side}"
        steps = NUM_FEW_STEPS if workload == FEW_STEPS else self.options.steps
        kernels = ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.kernels.items())
        compiled = "on" if self.compiled else "off"
        return [
            model,
            self.dtype,
            compiled,
            kernels.replace('"', "") or "default",
            f"{workload}, {steps} steps",
        ]


def cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """All combinations of the chosen models, dtypes and settings of `compile`, and the choices of kernels.

    Those that matter most come first: what the budget leaves out is at the end.
    """
    for part in options.parts:
        for compiled, dtype, name in product(options.compile, options.dtypes, options.models):
            case = Case(
                name=name,
                dtype=dtype,
                compiled=compiled == "on",
                part=part,
                device=device,
                options=options,
            )
            if part != KERNEL_CHOICES:
                yield case
            elif compiled == options.compile[0]:
                yield from _with_each_choice(case)


def _with_each_choice(case: Case) -> Iterator[Case]:
    """The case with the default kernels, and with each choice alone."""
    float32 = [replace(case, dtype="float16")] if case.name == "sdxl" else []
    for each, keys in ((case, KERNELS.keys() - OF_FLOAT32), *((half, OF_FLOAT32) for half in float32)):
        yield each
        for key, values in KERNELS.items():
            for value in values if key in keys else ():
                # Without the compiler the memory format is the usual one by default, with it the other.
                if (key, value) != ("channels_last", each.compiled):
                    yield replace(each, kernels={key: value})


def typical(rows: Sequence[Row], number: int) -> list[Row]:
    """A few of the rows that have about the mean number of steps: the middles of equal parts, by steps."""
    by_steps = sorted(rows, key=lambda row: row["num_inference_steps"])
    number = min(number, len(rows))
    return [by_steps[len(rows) * (2 * i + 1) // (2 * number)] for i in range(number)]
