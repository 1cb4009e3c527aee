"""Pictures in the making: one sample for each picture that a row asks for, at its step of the row's chain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.images.input_images import EncodedImage
from actors.rows.opened_rows import OpenedRow
from actors.rows.routing import ResolvedRoute, hands_on_latents
from schemas.systems.parameters import ParameterValue
from schemas.systems.system_table import PROMPTS, System

_NEGATIVE_TEXTS = ("negative_prompt", "negative_prompt_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeImage:
    """What a step gave, as the next step's input: it never left the worker."""

    picture: Any
    """A PIL image, or one row of latents: a tensor (channels, height, width)."""
    width: int
    height: int

    def decode(self) -> Any:
        """It is decoded already."""
        return self.picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture to be made."""

    opened: OpenedRow
    image_index: int
    step: int = 0
    """Place in the row's chain."""
    made: Mapping[str, MadeImage] = field(default_factory=dict)
    """What the step before gave, by the field it fills."""
    step_images: tuple[npt.NDArray[np.uint8], ...] = ()
    """Pictures of the steps before, where the route keeps them."""
    nsfw: bool | None = None
    """What safety checkers said of the steps before; None where none looked."""
    num_windows: int = 1
    """Windows of tokens in which the step's longest text is encoded; 1: as diffusers does it."""
    weighted: bool = False
    """Whether a text of the step has weights in it; False where the job reads none."""
    truncated: Mapping[str, str] = field(default_factory=dict)
    """By text field, what this step or one before left out; those that were read to their ends are absent."""

    @property
    def seed(self) -> int:
        """Image j of a row uses the row's seed + j, at every step."""
        return self.opened.row.seed + self.image_index

    @property
    def route(self) -> ResolvedRoute:
        """The route of this step."""
        return self.opened.route.steps[self.step]

    @property
    def system(self) -> System:
        """The step's system."""
        return self.route.system

    @property
    def following(self) -> ResolvedRoute | None:
        """The step after this one; None where this is the last."""
        later = self.opened.route.steps[self.step + 1 :]
        return later[0] if later else None

    @property
    def hands_on_latents(self) -> bool:
        """Whether this step's latents go on as they are."""
        return self.following is not None and hands_on_latents(self.route, self.following)

    @property
    def parameters(self) -> Mapping[str, ParameterValue | None]:
        """A row's own values are its first step's; the others take their routes'."""
        return self.opened.row.parameters if self.step == 0 else self.route.defaults

    @property
    def texts(self) -> Mapping[str, str | None]:
        """The texts that the step's pipeline is called with, by field.

        A missing second prompt is the first one, and a missing second negative prompt the first negative
        one, as in XL's own pipelines, but row by row. A negative field that is absent here is None to
        diffusers, which XL's pipelines treat differently from an empty text.
        """
        row, read = self.opened.row.texts, self.system.texts
        texts: dict[str, str | None] = {}
        if "prompt" in read:
            texts["prompt"] = row["prompt"]
        if "prompt_2" in read:
            texts["prompt_2"] = row["prompt_2"] or row["prompt"]
        for name in _NEGATIVE_TEXTS:
            # XL asks whether there is a first negative prompt before it reads any.
            if name in read and (row["negative_prompt"] is not None or row[name] is not None):
                texts[name] = row[name] or row["negative_prompt"] or ""
        return texts

    def encoder_texts(self, encoder: int) -> Mapping[str, str]:
        """What the text encoder with this number reads, by the field that has the text.

        That is the prompt and, with guidance, the negative prompt.
        """
        row, scale = self.opened.row.texts, self.parameters["guidance_scale"]
        guided = isinstance(scale, (int, float)) and scale > 1
        fields: tuple[str, ...] = PROMPTS if guided else PROMPTS[:1]
        if encoder == 1:
            fields = tuple(f"{field}_2" if row[f"{field}_2"] else field for field in fields)
        return {field: row[field] or "" for field in fields}

    def all_encoder_texts(self) -> list[str]:
        """What all text encoders of the step read; empty where the system takes no prompt."""
        if "prompt" not in self.system.texts:
            return []
        encoders = (0, 1) if "prompt_2" in self.system.texts else (0,)
        return [text for encoder in encoders for text in self.encoder_texts(encoder).values()]

    @property
    def images(self) -> Mapping[str, EncodedImage | MadeImage]:
        """The step's input pictures, by field."""
        if self.step == 0:
            own = (*self.system.images, *self.system.optional_images)
            return {name: image for name, image in self.opened.images.items() if name in own}
        there: dict[str, EncodedImage | MadeImage] = {**self.opened.images, **self.made}
        wanted = (*self.system.images, *(name for name in self.system.optional_images if name in there))
        return {name: there[name] for name in wanted}
