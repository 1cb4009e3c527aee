"""The IP-Adapters of one model: loaded when a row needs them, and used row by row."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from PIL import Image
from safetensors.torch import load_file

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.held_adapters import HeldAdapters
from actors.engine.adapters.image_encoders import ImageEncoder
from actors.engine.adapters.row_image_prompts import (
    ImagePromptSettings,
    PromptTokens,
    cross_attention,
    processors_in,
)
from schemas.systems.image_prompts import IMAGE_PROMPT, ImagePrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedAdapter:
    projection: Any
    """What turns an embedding into tokens."""
    processors: Mapping[str, Any]
    """diffusers' processors by layer, with the adapter's keys and values."""
    size_bytes: int

    @property
    def reads_states(self) -> bool:
        """Whether it reads the image encoder's hidden states, and not its embeddings (diffusers 0.42.1)."""
        return not isinstance(self.projection, ImageProjection)


class IpAdapters:
    """The IP-Adapters in one model's memory, up to a number of bytes.

    They change nothing outside of `plain`; the rows of merged batches get theirs by `settings`.
    """

    def __init__(self, pipeline: Any, find_file: Callable[[str], Path], capacity_bytes: int) -> None:
        """`find_file` gives an adapter's file on this machine, by the name that the spec gives it."""
        self._unet = pipeline.unet
        self._extractor = pipeline.components.get("feature_extractor")
        self._layers = cross_attention(pipeline.unet)
        load = partial(_read, pipeline.unet, tuple(self._layers))
        self._adapters = HeldAdapters("IP-Adapter", find_file, capacity_bytes=capacity_bytes, load=load)
        self._prompts: dict[int, PromptTokens] = {}
        self.settings = ImagePromptSettings(self._layers, self._prompts)
        """How rows of a batch read their image prompts in the UNet."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters in memory."""
        return tuple(self._adapters.loaded)

    @contextmanager
    def _held(self, name: str) -> Iterator[_LoadedAdapter]:
        """While the block runs, the adapter is in memory. SpecError if it cannot be loaded."""
        with self._adapters.held([name]):
            yield self._adapters.loaded[name]

    @contextmanager
    def in_batches(
        self, call: Any, prompt: ImagePrompt, pictures: Sequence[Image.Image], encoder: ImageEncoder
    ) -> Iterator[None]:
        """While the block runs, the rows of the call read these pictures wherever the UNet runs for them."""
        with self._held(prompt.ip_adapter) as adapter:
            embeds, blank = encoder.encode(
                pictures, self._extractor_for(encoder), hidden=adapter.reads_states
            )
            tokens, negative = adapter.projection(embeds), adapter.projection(blank)
            self._prompts[id(call)] = PromptTokens(
                adapter.processors, prompt.ip_adapter_scale, tokens, negative.expand_as(tokens)
            )
            try:
                yield
            finally:
                del self._prompts[id(call)]

    @contextmanager
    def plain(
        self, pipeline: Any, prompt: ImagePrompt, pictures: Sequence[Image.Image], encoder: ImageEncoder
    ) -> Iterator[dict[str, Any]]:
        """While the block runs, the pipeline has the adapter as after diffusers' `load_ip_adapter`.

        Yields the arguments with which the pipeline shows the pictures. It is a copy for one call.
        """
        pipeline.image_encoder, pipeline.feature_extractor = encoder.module, self._extractor_for(encoder)
        unet = self._unet
        with self._held(prompt.ip_adapter) as adapter:
            for processor in adapter.processors.values():
                processor.scale = [prompt.ip_adapter_scale]
            unet.encoder_hid_proj = MultiIPAdapterImageProjection([adapter.projection])
            before = unet.config.encoder_hid_dim_type
            unet.config.encoder_hid_dim_type = "ip_image_proj"
            try:
                with processors_in(self._layers, adapter.processors):
                    yield {IMAGE_PROMPT: [*pictures]}
            finally:
                unet.encoder_hid_proj = None
                unet.config.encoder_hid_dim_type = before

    def _extractor_for(self, encoder: ImageEncoder) -> Any:
        """The checkpoint's own feature extractor, or else the image encoder's, as in diffusers 0.42.1."""
        return encoder.extractor if self._extractor is None else self._extractor


def _read(unet: Any, layers: Iterable[str], file: Path) -> _LoadedAdapter:
    """An adapter as diffusers 0.42.1 reads it for a UNet with these layers of cross-attention."""
    weights: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    with torch.inference_mode(False), without_false_reports():
        for key, tensor in load_file(file).items():
            part, _, name = key.partition(".")
            weights[part][name] = tensor
        processors = unet._convert_ip_adapter_attn_to_diffusers([weights])
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(weights["image_proj"])
        for module in (projection, *(processors[f"{name}.processor"] for name in layers)):
            module.to(dtype=unet.dtype, device=unet.device)
    return _LoadedAdapter(
        projection=projection.eval(),
        processors={name: processors[f"{name}.processor"] for name in layers},
        size_bytes=file.stat().st_size,
    )
