"""The LoRAs of one model: loaded by diffusers when a row needs them, and used row by row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.held_adapters import HeldAdapters
from actors.engine.adapters.row_loras import Loras, all_have, forget_factors, rows_have, take_out
from actors.engine.quirks.clip_skip import clip_skip_off

Weights = Mapping[str, float]
"""A weight for each LoRA, by the name that the spec gives it."""

_numbers = count(1)
"""Modules can be shared by models whose LoRAs have the same names, so layers get other names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedLora:
    in_layers: str
    """Its name in the layers."""
    layers: Mapping[str, Sequence[Any]]
    """The layers that it changes, by component."""
    size_bytes: int
    """The size of its matrices in memory."""


class LoraCache:
    """The LoRAs in one model's modules, up to a number of bytes.

    They change nothing outside of `plain`; the rows of merged batches get theirs by `settings_of`.
    """

    def __init__(self, pipeline: Any, find_file: Callable[[str], Path], capacity_bytes: int) -> None:
        """`find_file` gives a LoRA's file on this machine, by the name that the spec gives it."""
        load = partial(_loaded_from, pipeline)
        self._held = HeldAdapters("LoRA", find_file, capacity_bytes=capacity_bytes, load=load, drop=_drop)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the LoRAs in memory."""
        return tuple(self._held.loaded)

    def held(self, weights: Weights) -> AbstractContextManager[None]:
        """While the block runs, these LoRAs are in memory. SpecError if one of them cannot be loaded."""
        return self._held.held(weights.keys())

    def plain(self, weights: Weights) -> AbstractContextManager[None]:
        """While the block runs, all calls of the modules have these LoRAs, as after `set_adapters`."""
        loaded = self._held.loaded
        return all_have(tuple((loaded[name].in_layers, weight) for name, weight in weights.items()))

    def settings_of(self, component: str) -> "LoraSettings":
        """How the LoRAs of a component are set by row."""
        return LoraSettings(component, self._held.loaded)

    def close(self) -> None:
        """Drop all LoRAs: the model is dropped, and other models may go on with some of its modules."""
        self._held.close()


def _loaded_from(pipeline: Any, file: Path) -> _LoadedLora:
    """A LoRA that diffusers loads into the pipeline, taken out of peft's layers."""
    in_layers = f"lora_{next(_numbers)}"
    layers = _taken_out(pipeline, file, in_layers)
    own = (layer.loras[in_layers] for of_component in layers.values() for layer in of_component)
    size_bytes = sum(lora.down.nbytes + lora.up.nbytes for lora in own)
    return _LoadedLora(in_layers=in_layers, layers=layers, size_bytes=size_bytes)


def _taken_out(pipeline: Any, file: Path, in_layers: str) -> dict[str, list[Any]]:
    """Load a file with diffusers, and take its matrices out of peft's layers, which are returned."""
    encoder = getattr(pipeline, "text_encoder", None)
    with torch.inference_mode(False), without_false_reports(), clip_skip_off(encoder):
        try:
            pipeline.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=in_layers, use_safetensors=True
            )
            layers = {
                component: [*_layers_with(in_layers, getattr(pipeline, component, None))]
                for component in pipeline._lora_loadable_modules
            }
            for layer in (layer for of_component in layers.values() for layer in of_component):
                take_out(layer, in_layers)
        finally:
            pipeline.delete_adapters(in_layers)
    return layers


def _drop(lora: _LoadedLora) -> None:
    """Take a LoRA out of its layers."""
    forget_factors()
    for layers in lora.layers.values():
        for layer in layers:
            del layer.loras[lora.in_layers]


def _layers_with(name: str, module: torch.nn.Module | None) -> Iterator[Any]:
    """Yield the layers of a module that have something of this adapter."""
    for layer in module.modules() if module is not None else ():
        if isinstance(layer, BaseTunerLayer) and name in layer._get_available_adapters():
            yield layer


class LoraSettings:
    """How a component's LoRAs are set for each row of a batch (`RowSettings`)."""

    def __init__(self, component: str, loaded: Mapping[str, _LoadedLora]) -> None:
        self._component = component
        self._loaded = loaded

    def of(self, call: Any) -> Loras:
        """The call's LoRAs that change this component."""
        loras = ((self._loaded[name], weight) for name, weight in call.loras.items())
        return tuple((lora.in_layers, weight) for lora, weight in loras if lora.layers.get(self._component))

    def applied(self, settings: Sequence[Any]) -> AbstractContextManager[None]:
        """While the block runs, row i of what the module gets has the LoRAs `settings[i]`."""
        return rows_have(settings)
