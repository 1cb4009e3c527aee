"""The LoRAs of one model: loaded by diffusers when a row needs them, and used row by row."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.row_loras import Loras, all_have, forget_factors, rows_have, take_out
from actors.engine.quirks.clip_skip import clip_skip_off
from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
from schemas.errors import SpecError
from schemas.wording.printable import in_one_line

logger = logging.getLogger(__name__)

Weights = Mapping[str, float]
"""A weight for each LoRA, by the name that the spec gives it."""

_LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, SafetensorError),
)
"""The errors that the libraries raise for a faulty file."""

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

    Beyond it, those that were used longest ago are dropped, except those in use. They change nothing outside
    of `plain`; the rows of merged batches get theirs by `settings_of`.
    """

    def __init__(self, pipeline: Any, find_file: Callable[[str], Path], capacity_bytes: int) -> None:
        """`find_file` gives a LoRA's file on this machine, by the name that the spec gives it."""
        self._pipeline = pipeline
        self._find_file = find_file
        self._capacity_bytes = capacity_bytes
        self._loaded: OrderedDict[str, _LoadedLora] = OrderedDict()
        """By the spec's name; the last one was used last."""
        self._users: Counter[str] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the LoRAs in memory."""
        return tuple(self._loaded)

    @contextmanager
    def held(self, weights: Weights) -> Iterator[None]:
        """While the block runs, these LoRAs are in memory. SpecError if one of them cannot be loaded."""
        self._users.update(weights.keys())
        try:
            for name in weights:
                if name not in self._loaded:
                    self._load(name)
                self._loaded.move_to_end(name)
            yield
        finally:
            self._users.subtract(weights.keys())

    def plain(self, weights: Weights) -> AbstractContextManager[None]:
        """While the block runs, all calls of the modules have these LoRAs, as after `set_adapters`."""
        return all_have(tuple((self._loaded[name].in_layers, weight) for name, weight in weights.items()))

    def settings_of(self, component: str) -> "LoraSettings":
        """How the LoRAs of a component are set by row."""
        return LoraSettings(component, self._loaded)

    def close(self) -> None:
        """Drop all LoRAs: the model is dropped, and other models may go on with some of its modules."""
        for name in self.names:
            self._drop(name)

    def _load(self, name: str) -> None:
        file, in_layers = self._find_file(name), f"lora_{next(_numbers)}"
        self._make_room(file.stat().st_size)
        logger.info("loading lora=%s file=%s", name, file)
        try:
            layers = self._taken_out(file, in_layers)
        except _LOADING_ERRORS as error:
            if is_out_of_memory(error) or is_fatal(error):
                raise  # The machine is at fault, not the file.
            raise SpecError(f"the LoRA `{name}`: {file} cannot be loaded: {in_one_line(error)}") from error
        # The file may have another precision than the modules, and so another size.
        own = (layer.loras[in_layers] for of_component in layers.values() for layer in of_component)
        size_bytes = sum(lora.down.nbytes + lora.up.nbytes for lora in own)
        self._loaded[name] = _LoadedLora(in_layers=in_layers, layers=layers, size_bytes=size_bytes)
        self._make_room(0)

    def _taken_out(self, file: Path, in_layers: str) -> dict[str, list[Any]]:
        """Load a file with diffusers, and take its matrices out of peft's layers, which are returned."""
        encoder = getattr(self._pipeline, "text_encoder", None)
        with torch.inference_mode(False), without_false_reports(), clip_skip_off(encoder):
            try:
                self._pipeline.load_lora_weights(
                    str(file.parent), weight_name=file.name, adapter_name=in_layers, use_safetensors=True
                )
                layers = {
                    component: [*_layers_with(in_layers, getattr(self._pipeline, component, None))]
                    for component in self._pipeline._lora_loadable_modules
                }
                for layer in (layer for of_component in layers.values() for layer in of_component):
                    take_out(layer, in_layers)
            finally:
                self._pipeline.delete_adapters(in_layers)
        return layers

    def _make_room(self, size_bytes: int) -> None:
        kept_bytes = sum(lora.size_bytes for lora in self._loaded.values())
        for name in self.names:
            if not self._users[name] and kept_bytes + size_bytes > self._capacity_bytes:
                kept_bytes -= self._loaded[name].size_bytes
                self._drop(name)

    def _drop(self, name: str) -> None:
        forget_factors()
        dropped = self._loaded.pop(name)
        for layers in dropped.layers.values():
            for layer in layers:
                del layer.loras[dropped.in_layers]


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
