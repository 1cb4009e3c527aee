"""The image encoders of IP-Adapters, which turn pictures into embeddings."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.held_adapters import loading
from schemas.systems.model_card import IpAdapterCard

logger = logging.getLogger(__name__)


class ImageEncoder:
    """An image encoder in memory."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._blank: dict[torch.Size, torch.Tensor] = {}

    @cached_property
    def extractor(self) -> Any:
        """What turns pictures into pixels of the encoder's size."""
        size = self.module.config.image_size
        with without_false_reports():
            return CLIPImageProcessor(size=size, crop_size=size)

    def encode(
        self, pictures: Sequence[Image.Image], extractor: Any, *, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(embeddings, those of no picture), as diffusers 0.42.1 computes them for each picture alone.

        The first has a row for each picture, the second has one row. `hidden`: whether they are the states of
        the last layer but one.
        """
        values = [extractor(picture, return_tensors="pt").pixel_values for picture in pictures]
        pixels = torch.cat(values).to(device=self.module.device, dtype=self.module.dtype)
        if not hidden:
            embeds = self.module(pixels).image_embeds
            return embeds, torch.zeros_like(embeds[:1])
        return self.module(pixels, output_hidden_states=True).hidden_states[-2], self._states_of_blank(pixels)

    def _states_of_blank(self, like: torch.Tensor) -> torch.Tensor:
        """The hidden states of a picture of zeros, which never change.

        They are computed alone and not in a batch, on which their last bits would depend.
        """
        size = like.shape[1:]
        if size not in self._blank:
            forward = type(self.module).forward
            output = forward(self.module, torch.zeros_like(like[:1]), output_hidden_states=True)
            self._blank[size] = output.hidden_states[-2].clone()
        return self._blank[size]


class SharedEncoders:
    """The image encoders in memory, by the content of their files: adapters that name the same one share it.

    It keeps none alive: an image encoder is freed with the last model that uses it.
    """

    def __init__(self, device: torch.device, find_folder: Callable[[str, IpAdapterCard], Path]) -> None:
        """`find_folder` gives the folder of an adapter's image encoder on this machine."""
        self._device = device
        self._find_folder = find_folder
        self._alike: WeakValueDictionary[tuple[object, ...], ImageEncoder] = WeakValueDictionary()

    def get(self, name: str, card: IpAdapterCard, dtype: torch.dtype) -> ImageEncoder:
        """The image encoder of the adapter with this name and card; SpecError if it cannot be loaded."""
        key = *card.encoder_key, dtype
        encoder = self._alike.get(key)
        if encoder is None:
            encoder = self._alike[key] = ImageEncoder(self._load(name, card, dtype))
        return encoder

    def _load(self, name: str, card: IpAdapterCard, dtype: torch.dtype) -> Any:
        folder = self._find_folder(name, card)
        logger.info("loading image_encoder of ip_adapter=%s folder=%s dtype=%s", name, folder, dtype)
        with loading(f"the IP-Adapter `{name}`: its image encoder {folder}"):
            with without_false_reports():
                module: Any = CLIPVisionModelWithProjection.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True
                )
            return module.to(self._device).eval()
