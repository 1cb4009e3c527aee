"""Samples: each is one of the images that a row asks for, at one step of the row's chain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.images.input_images import EncodedImage
from actors.rows.opened_rows import OpenedRow
from actors.rows.routing import ResolvedRoute, hands_on_latents
from schemas.systems.control_parameters import CONTROL_IMAGES, control_images
from schemas.systems.image_prompts import IMAGE_PROMPT, image_prompt_of
from schemas.systems.parameters import ParameterValue
from schemas.systems.system_table import PROMPTS, System

_NEGATIVE_TEXTS = ("negative_prompt", "negative_prompt_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """An image, a depth map or latents from one step, as input of the next; it never leaves the worker."""

    image: Any
    """A PIL image, or one row of latents: a tensor (channels, height, width)."""
    width: int
    """Width in pixels; of latents, their own width."""
    height: int
    """Height in pixels; of latents, their own height."""

    def decode(self) -> Any:
        """Return `image`: unlike an EncodedImage it needs no decoding."""
        return self.image


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image that is to be generated, with its input for the current step."""

    opened: OpenedRow
    image_index: int
    """0 for the row's first image, and so on."""
    step: int = 0
    """The current step of the row's chain; the first is 0."""
    previous_results: Mapping[str, StepResult] = field(default_factory=dict)
    """The results of the step before, by the input field of this step that each fills."""
    step_images: tuple[npt.NDArray[np.uint8], ...] = ()
    """The images of the steps before, if the route stores them (`keep_steps`)."""
    nsfw: bool | None = None
    """The safety checkers' verdict on the steps before; None if none of them had a checker."""
    num_windows: int = 1
    """The number of windows of 77 tokens in which the step's texts are encoded; with 1, as in diffusers."""
    weighted: bool = False
    """Whether a text of the step has prompt weights; False if the job does not use them."""
    truncated: Mapping[str, str] = field(default_factory=dict)
    """By text field, the end of its text that this step or one before cut off. A field whose text was not cut
    is absent."""

    @property
    def seed(self) -> int:
        """The seed of every step: the row's seed + j for image j of the row."""
        return self.opened.row.seed + self.image_index

    @property
    def route(self) -> ResolvedRoute:
        """The route of this step."""
        return self.opened.route.steps[self.step]

    @property
    def system(self) -> System:
        """The system of this step."""
        return self.route.system

    @property
    def following(self) -> ResolvedRoute | None:
        """The route of the next step; None if this step is the last."""
        later = self.opened.route.steps[self.step + 1 :]
        return later[0] if later else None

    @property
    def passes_latents_on(self) -> bool:
        """Whether the next step takes this step's latents, which then are not decoded."""
        return self.following is not None and hands_on_latents(self.route, self.following)

    @property
    def parameters(self) -> Mapping[str, ParameterValue | None]:
        """The values of this step's parameters: the row's in the first step, the route's in later steps."""
        return self.opened.row.parameters if self.step == 0 else self.route.defaults

    @property
    def texts(self) -> Mapping[str, str | None]:
        """The texts that the step's pipeline is called with, by field.

        A missing `prompt_2` is replaced by `prompt`, and a missing `negative_prompt_2` by `negative_prompt`,
        as XL's own pipelines do, but here row by row. A negative field that is absent here is None in
        diffusers; XL's pipelines treat None differently from an empty text.
        """
        row, read = self.opened.row.texts, self.system.texts
        texts: dict[str, str | None] = {}
        if "prompt" in read:
            texts["prompt"] = row["prompt"]
        if "prompt_2" in read:
            texts["prompt_2"] = row["prompt_2"] or row["prompt"]
        for name in _NEGATIVE_TEXTS:
            # XL reads no negative prompt at all if the first one is None.
            if name in read and (row["negative_prompt"] is not None or row[name] is not None):
                texts[name] = row[name] or row["negative_prompt"] or ""
        return texts

    def encoder_texts(self, encoder: int) -> Mapping[str, str]:
        """The texts that the text encoder with this number reads, by the field that has the text.

        These are the prompt and, with guidance, the negative prompt.
        """
        row, scale = self.opened.row.texts, self.parameters["guidance_scale"]
        guided = isinstance(scale, (int, float)) and scale > 1
        fields: tuple[str, ...] = PROMPTS if guided else PROMPTS[:1]
        if encoder == 1:
            fields = tuple(f"{field}_2" if row[f"{field}_2"] else field for field in fields)
        return {field: row[field] or "" for field in fields}

    def all_encoder_texts(self) -> list[str]:
        """The texts that all text encoders of the step read; empty if the system takes no prompt."""
        if "prompt" not in self.system.texts:
            return []
        encoders = (0, 1) if "prompt_2" in self.system.texts else (0,)
        return [text for encoder in encoders for text in self.encoder_texts(encoder).values()]

    @property
    def images(self) -> Mapping[str, EncodedImage | StepResult]:
        """The step's input images, by field: the row's own, replaced by the results of the step before."""
        guiding = control_images(self.parameters, self.opened.images)
        guiding += [IMAGE_PROMPT] if image_prompt_of(self.parameters) else []
        idle = {*CONTROL_IMAGES, IMAGE_PROMPT} - {*guiding}
        optional = [field for field in self.system.optional_images if field not in idle]
        if self.step == 0:
            fields = (*self.system.images, *optional)
            return {field: image for field, image in self.opened.images.items() if field in fields}
        available: dict[str, EncodedImage | StepResult] = {**self.opened.images, **self.previous_results}
        optional = [field for field in optional if field in available]
        return {field: available[field] for field in (*self.system.images, *optional)}
