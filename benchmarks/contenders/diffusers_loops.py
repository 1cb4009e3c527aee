"""Rows made by diffusers alone: the loops that one would write without darkroom."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from benchmarks.workloads import PARAMETERS, Row, groups

CLASSES = {
    "sd": {
        "text2img": diffusers.StableDiffusionPipeline,
        "img2img": diffusers.StableDiffusionImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionInpaintPipeline,
    },
    "sdxl": {
        "text2img": diffusers.StableDiffusionXLPipeline,
        "img2img": diffusers.StableDiffusionXLImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionXLInpaintPipeline,
    },
}


class PlainDiffusers:
    """One process, one set of weights; pictures are encoded where they are made, by Pillow."""

    def __init__(
        self,
        checkpoint: Path,
        family: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
    ) -> None:
        self._classes = CLASSES[family]
        first = self._classes["text2img"].from_pretrained(checkpoint, use_safetensors=True, dtype=dtype)
        self._pipelines = {"text2img": first.to(device)}
        self._published = first.scheduler.config
        self._schedulers: dict[str, Any] = {}
        if compiled:
            # A shape, its code: the fastest that it has to offer for few shapes.
            first.unet.compile(dynamic=False)

    def one_by_one(self, rows: Sequence[Row]) -> int:
        """R0: a call for each row."""
        return sum(len(self.make([row])) for row in rows)

    def grouped(self, rows: Sequence[Row], max_rows: int) -> int:
        """R0b: a call for as many rows as have equal parameters."""
        return sum(len(self.make(group)) for group in groups(rows, max_rows))

    def make(self, rows: Sequence[Row]) -> list[bytes]:
        """One call for rows of equal parameters; their pictures as PNG files."""
        first = rows[0]
        pipeline = self._pipeline(first["task"])
        pipeline.scheduler = self._scheduler(first["scheduler"])
        arguments = {name: first[name] for name in PARAMETERS if first[name] is not None}
        for field in ("image", "mask_image"):
            if first[field] is not None:
                arguments[field] = [Image.open(io.BytesIO(row[field]["bytes"])) for row in rows]
        if first["task"] == "inpaint":
            # Its default is the model's size, not the picture's.
            arguments["width"], arguments["height"] = arguments["image"][0].size
        made = pipeline(
            [row["prompt"] for row in rows],
            generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
            **arguments,
        )
        return [_png(image) for image in made.images]

    def _pipeline(self, task: str) -> Any:
        if task not in self._pipelines:
            self._pipelines[task] = self._classes[task](**self._pipelines["text2img"].components)
        self._pipelines[task].set_progress_bar_config(disable=True)
        return self._pipelines[task]

    def _scheduler(self, name: str) -> Any:
        if name not in self._schedulers:
            self._schedulers[name] = getattr(diffusers, name).from_config(self._published)
        return self._schedulers[name]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
