"""Attention of which each row of a batch reads an image prompt of its own, or none.

diffusers 0.42.1 has one IP-Adapter and one scale for all rows: they belong to the UNet's processors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.nn.functional import scaled_dot_product_attention

KeysAndValues = tuple[torch.Tensor, torch.Tensor]
"""(rows, heads, tokens, channels of a head) each."""


class PromptTokens:
    """What the pictures of a call's rows say to the UNet: tokens beside those of the text.

    Two are equal only if they are the same object.
    """

    def __init__(
        self,
        processors: Mapping[str, Any],
        scale: float,
        tokens: torch.Tensor,
        negative: torch.Tensor,
    ) -> None:
        """`processors`: those of the adapter, by layer; `tokens`, `negative`: (rows, tokens, width)."""
        self._processors = processors
        self._scale = scale
        self._tokens = tokens
        self._negative = negative
        self._kept: dict[tuple[str, int], KeysAndValues] = {}

    @property
    def num_tokens(self) -> int:
        """The number of tokens of each picture."""
        return self._tokens.shape[1]

    def keys_and_values(self, layer: str, heads: int, num_rows: int) -> KeysAndValues:
        """What a layer attends to in the pictures: the same at all steps, so it is computed once.

        `num_rows` is the number of the call's rows, or twice that: with guidance, the rows of the negative
        prompt come first. The values are scaled, and so is what attention adds.
        """
        key = layer, num_rows
        if key not in self._kept:
            guided = num_rows > len(self._tokens)
            tokens = torch.cat([self._negative, self._tokens]) if guided else self._tokens
            processor = self._processors[layer]
            self._kept[key] = (
                _by_head(processor.to_k_ip[0](tokens), heads),
                _by_head(processor.to_v_ip[0](tokens), heads) * self._scale,
            )
        return self._kept[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """The rows of a batch whose pictures have equal numbers of tokens."""

    prompts: Sequence[tuple[PromptTokens, int]]
    """What the pictures of each call say, and the call's number of rows in the batch."""
    rows: torch.Tensor | None
    """The rows' positions in the batch; None for all rows."""

    def keys_and_values(self, layer: str, heads: int) -> KeysAndValues:
        """What the layer attends to in the pictures of these rows."""
        pairs = [prompt.keys_and_values(layer, heads, num_rows) for prompt, num_rows in self.prompts]
        keys, values = zip(*pairs, strict=True)
        return (keys[0], values[0]) if len(pairs) == 1 else (torch.cat(keys), torch.cat(values))


class _RowAttention:
    """diffusers' AttnProcessor2_0 (0.42.1) for a layer that reads text, and the pictures of some rows."""

    def __init__(self, layer: str, groups: Sequence[_Alike]) -> None:
        self._layer = layer
        self._groups = groups

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """The layer's result, as IPAdapterAttnProcessor2_0 computes it for a single row."""
        if attention_mask is not None:
            rows, length, _width = encoder_hidden_states.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, length, rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        query = _by_head(attn.to_q(hidden_states), attn.heads)
        key, value = (_by_head(to(encoder_hidden_states), attn.heads) for to in (attn.to_k, attn.to_v))
        result = _joined(scaled_dot_product_attention(query, key, value, attn_mask=attention_mask))
        for group in self._groups:
            key, value = group.keys_and_values(self._layer, attn.heads)
            if group.rows is None:
                result = result + _joined(scaled_dot_product_attention(query, key, value))
            else:
                own = query.index_select(0, group.rows)
                added = _joined(scaled_dot_product_attention(own, key, value))
                result = result.index_add(0, group.rows, added)
        return attn.to_out[1](attn.to_out[0](result))  # type: ignore[no-any-return]


def _by_head(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.view(len(states), -1, heads, states.shape[-1] // heads).transpose(1, 2)


def _joined(states: torch.Tensor) -> torch.Tensor:
    return states.transpose(1, 2).reshape(len(states), states.shape[2], -1)


def cross_attention(unet: torch.nn.Module) -> dict[str, Any]:
    """The layers of a UNet that read text, by name: IP-Adapters add to these."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, Attention) and name.endswith("attn2")
    }


@contextmanager
def processors_in(layers: Mapping[str, Any], processors: Mapping[str, Any]) -> Iterator[None]:
    """While the block runs, the layers have these processors."""
    before = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(processors[name])
        yield
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])


class ImagePromptSettings:
    """How rows of a batch read their image prompts in a UNet (`RowSettings`)."""

    def __init__(self, layers: Mapping[str, Any], prompts: Mapping[int, PromptTokens]) -> None:
        """`layers`: the UNet's cross-attention; `prompts`: those of calls, by the call's `id`."""
        self._layers = layers
        self._prompts = prompts
        self._last: tuple[Sequence[PromptTokens | None], Sequence[_Alike]] = ((), ())

    def of(self, call: Any) -> PromptTokens | None:
        """What the pictures of the call's rows say; None for a call without."""
        return self._prompts.get(id(call))

    @contextmanager
    def applied(self, settings: Sequence[Any]) -> Iterator[None]:
        """While the block runs, row i of what the UNet gets reads the picture of `settings[i]`.

        A batch in which no row has one runs as if there were no IP-Adapters.
        """
        if not any(settings):
            yield
            return
        if self._last[0] != settings:
            device = next(iter(self._layers.values())).to_q.weight.device
            self._last = settings, _groups(settings, device)
        groups = self._last[1]
        with processors_in(self._layers, {name: _RowAttention(name, groups) for name in self._layers}):
            yield


def _groups(settings: Sequence[PromptTokens | None], device: torch.device) -> list[_Alike]:
    prompts: dict[int, list[tuple[PromptTokens, int]]] = {}
    rows: dict[int, list[int]] = {}
    start = 0
    for prompt, run in groupby(settings):
        length = len([*run])
        if prompt is not None:
            prompts.setdefault(prompt.num_tokens, []).append((prompt, length))
            rows.setdefault(prompt.num_tokens, []).extend(range(start, start + length))
        start += length
    return [
        _Alike(
            prompts=prompts[size],
            # A blocking copy would wait for all work that the device has still to do.
            rows=None if len(rows[size]) == start else torch.tensor(rows[size]).to(device, non_blocking=True),
        )
        for size in prompts
    ]
