"""The LoRAs of one model: loaded by diffusers when a row needs them, and used row by row."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.row_loras import ROW_LAYERS, Loras, forget_factors, is_plain_lora, rows_have
from actors.engine.quirks.clip_skip import clip_skip_off
from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
from schemas.errors import SpecError

logger = logging.getLogger(__name__)

Weights = Mapping[str, float]
"""A weight for each LoRA, by the name that the spec gives it."""

MAX_LORAS = 64
"""The most LoRAs of a model in memory: peft 0.21.2 walks through all of them to load another one."""

_LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, SafetensorError),
)
"""The errors that the libraries raise for a faulty file."""

_numbers = count(1)
"""Modules can be shared by models whose LoRAs have the same names, so peft gets other names."""


class LoraCache:
    """The LoRAs in one model's modules, up to a number of bytes.

    Beyond it, those that were used longest ago are dropped, except those in use. None is active in a module
    outside of `plain`; the rows of merged batches get theirs by `settings_of`.
    """

    def __init__(self, pipeline: Any, find_file: Callable[[str], Path], capacity_bytes: int) -> None:
        """`find_file` gives a LoRA's file on this machine, by the name that the spec gives it."""
        self._pipeline = pipeline
        self._find_file = find_file
        self._capacity_bytes = capacity_bytes
        self._loaded: OrderedDict[str, str] = OrderedDict()
        """peft's name of each LoRA in memory; the last one was used last."""
        self._size_bytes: dict[str, int] = {}
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

    def in_peft(self, weights: Weights) -> Loras:
        """These LoRAs, which are in memory, under peft's names."""
        return tuple((self._loaded[name], weight) for name, weight in weights.items())

    @contextmanager
    def plain(self, loras: Loras) -> Iterator[None]:
        """While the block runs, every call of the modules has these LoRAs, as diffusers sets them."""
        if not loras:
            yield
            return
        self._pipeline.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
        self._enable(True)
        try:
            yield
        finally:
            self._enable(False)

    def settings_of(self, component: str) -> "LoraSettings | None":
        """How the LoRAs of a component are set by row; None if LoRAs do not change this component."""
        if component not in self._pipeline._lora_loadable_modules:
            return None
        return LoraSettings(getattr(self._pipeline, component), self)

    def close(self) -> None:
        """Drop all LoRAs: the model is dropped, and other models may go on with some of its modules."""
        for name in self.names:
            self._drop(name)

    def _load(self, name: str) -> None:
        file, peft_name = self._find_file(name), f"lora_{next(_numbers)}"
        self._make_room(file.stat().st_size)
        logger.info("loading lora=%s file=%s", name, file)
        try:
            encoder = getattr(self._pipeline, "text_encoder", None)
            with torch.inference_mode(False), without_false_reports(), clip_skip_off(encoder):
                self._pipeline.load_lora_weights(
                    str(file.parent), weight_name=file.name, adapter_name=peft_name, use_safetensors=True
                )
        except _LOADING_ERRORS as error:
            if is_out_of_memory(error) or is_fatal(error):
                raise  # The machine is at fault, not the file.
            raise SpecError(f"loras.{name}: {file} cannot be loaded: {error}") from error
        self._loaded[name] = peft_name
        self._enable(False)
        self._size_bytes[name] = file.stat().st_size
        for layer in self._layers():
            layer.__class__ = ROW_LAYERS.get(type(layer), type(layer))
            if not is_plain_lora(layer, peft_name):
                raise SpecError(
                    f"loras.{name}: {file} has more than two matrices a layer (it is a DoRA, or has biases), "
                    "and rows of one batch cannot differ in that; convert it to a plain LoRA"
                )

    def _make_room(self, size_bytes: int) -> None:
        for name in self.names:
            full = sum(self._size_bytes.values()) + size_bytes > self._capacity_bytes
            if not self._users[name] and (full or len(self._loaded) >= MAX_LORAS):
                self._drop(name)

    def _drop(self, name: str) -> None:
        forget_factors()
        with without_false_reports():
            self._pipeline.delete_adapters(self._loaded.pop(name))
        del self._size_bytes[name]

    def _enable(self, enabled: bool) -> None:
        # diffusers' own `disable_lora` raises an error if there is no LoRA in one of the modules.
        for layer in self._layers():
            layer.enable_adapters(enabled)

    def _layers(self) -> Iterator[Any]:
        for component in self._pipeline._lora_loadable_modules:
            module = getattr(self._pipeline, component, None)
            for layer in module.modules() if module is not None else ():
                if isinstance(layer, BaseTunerLayer):
                    yield layer


class LoraSettings:
    """How a module's LoRAs are set for each row of a batch (`merged_modules.RowSettings`)."""

    def __init__(self, module: torch.nn.Module, cache: LoraCache) -> None:
        self._module = module
        self._cache = cache

    def of(self, call: Any) -> Loras:
        """The call's LoRAs that change this module."""
        changing = getattr(self._module, "peft_config", {})
        return tuple(lora for lora in self._cache.in_peft(call.loras) if lora[0] in changing)

    def applied(self, settings: Sequence[Any]) -> AbstractContextManager[None]:
        """While the block runs, row i of what the module gets has the LoRAs `settings[i]`."""
        return rows_have(settings)
