"""Pictures in the making: one sample for each picture that a row asks for, at its step of the row's chain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.images.input_images import EncodedImage
from actors.rows.opened_rows import OpenedRow
from actors.rows.routing import Routed, hands_on_latents
from schemas.systems.parameters import ParameterValue
from schemas.systems.system_table import System


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
    def routed(self) -> Routed:
        """What makes this step."""
        first = self.opened.row.routed
        return first if self.step == 0 else first.then[self.step - 1]

    @property
    def system(self) -> System:
        """The step's system."""
        assert self.routed.system is not None, "rows with a problem are kept away from the engine"
        return self.routed.system

    @property
    def following(self) -> Routed | None:
        """The step after this one."""
        chain = self.opened.row.routed.then
        return chain[self.step] if self.step < len(chain) else None

    @property
    def hands_on_latents(self) -> bool:
        """Whether this step's latents go on as they are."""
        return self.following is not None and hands_on_latents(self.routed, self.following)

    @property
    def parameters(self) -> Mapping[str, ParameterValue | None]:
        """A row's own values are its first step's; the others take their routes'."""
        return self.opened.row.parameters if self.step == 0 else self.routed.defaults

    @property
    def images(self) -> Mapping[str, EncodedImage | MadeImage]:
        """The step's input pictures, by field."""
        if self.step == 0:
            first = self.opened.row.routed.system
            own = (*first.images, *first.optional_images) if first else ()
            return {name: image for name, image in self.opened.images.items() if name in own}
        there: dict[str, EncodedImage | MadeImage] = {**self.opened.images, **self.made}
        wanted = (*self.system.images, *(name for name in self.system.optional_images if name in there))
        return {name: there[name] for name in wanted}
