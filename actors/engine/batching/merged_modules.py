"""Modules whose calls are merged: where calls stop, and the batches in which they are answered."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import Parameter, signature
from traceback import clear_frames
from typing import Any

import torch

from actors.engine.batching import tensor_trees
from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.row_cache import RowCache, RowKey, concatenated_results, row_keys
from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory

Arguments = Mapping[str, Any]
"""Of a module call, by the names in its signature."""

Autocast = tuple[str, torch.dtype]
"""A kind of device, and what is computed in on it."""

_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePoint:
    """A module whose calls are merged."""

    name: str
    """In counts."""
    module: torch.nn.Module
    stage: Stage
    numbers: frozenset[str] = frozenset()
    """Arguments that are one number for all rows of a call: each row is given its own, as a float."""
    caches_rows: bool = False
    """Whether rows that it has been given before are answered from memory."""
    forward: Callable[..., Any] | None = None
    """What runs in place of the module's own `forward`, such as a compiled one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a call asks of a module."""

    arguments: Arguments
    rows: int
    batch_key: Hashable
    """Requests of one form can go through the module together."""
    keys: tuple[RowKey, ...] = ()
    """Of its rows, where the module remembers them."""
    alone: bool = False
    """Whether no other rows may be put beside its own, nor padding."""
    autocast: Autocast | None = None
    """Under which the module is called, as diffusers' depth2img calls its depth estimator."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An answer that is an error."""

    error: Exception


@dataclass(slots=True)
class CallCount:
    """What went through a module; the same on every machine."""

    batches: int = 0
    """Calls of the module."""
    rows_run: int = 0
    """Rows in them, without padding."""
    rows_padded: int = 0
    rows_needed: int = 0
    """Rows that were asked of it: rows run again after an error are not counted again."""
    images: int = 0
    """Of the calls that were answered together, over all batches: with guidance each takes two rows."""

    def __add__(self, other: "CallCount") -> "CallCount":
        return CallCount(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class MergedModule:
    """A merge point during a run."""

    def __init__(self, point: MergePoint, ladder: Sequence[int] = ()) -> None:
        self.point = point
        self.count = CallCount()
        self.max_rows: dict[Hashable, int] = {}
        """That fit in memory together, by form, once more have not."""
        self._ladder = ladder if point.stage is Stage.DENOISE else ()
        self._own_forward = point.module.forward
        self._forward = point.forward or point.module.forward
        parameters = signature(point.module.forward).parameters
        self._names = [name for name, parameter in parameters.items() if parameter.kind in _BY_PLACE]
        self._defaults = {name: parameter.default for name, parameter in parameters.items()}
        self._row_cache = RowCache() if point.caches_rows else None

    @contextmanager
    def patched(
        self, is_within_call: Callable[[], bool], suspend: Callable[["MergedModule", Request], Any]
    ) -> Iterator[None]:
        """While the block runs, a caller for whom `is_within_call` is true gets what `suspend` returns.

        Any other call of the module passes through.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not is_within_call():
                return self._own_forward(*args, **kwargs)
            request = self._request(args, kwargs)
            known = self._row_cache.get(request.keys) if self._row_cache and request.keys else None
            if known is None:
                with _autocast_off(request.autocast):
                    return suspend(self, request)
            self.count.rows_needed += request.rows
            return known

        module = self.point.module
        before = vars(module).get("forward")
        # For the run only: a module with a function that knows the module would not be freed in time.
        module.forward = forward
        try:
            yield
        finally:
            if before is None:
                del module.forward
            else:
                module.forward = before

    def _request(self, args: tuple[Any, ...], kwargs: Arguments) -> Request:
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        # Pipelines differ in whether they leave an argument out or say None, where that is the default.
        left_out = {name for name in named if named[name] is None and self._defaults.get(name) is None}
        arguments = {name: named[name] for name in sorted(named.keys() - left_out)}
        numbers = self.point.numbers & arguments.keys()
        autocast = _autocast()
        tensors = [*tensor_trees.tensors([arguments[name] for name in arguments.keys() - numbers])]
        sizes = set(tensor_trees.leading_sizes(tensors))
        rows = next(iter(sizes)) if len(sizes) == 1 else None
        if rows is None:
            # A tensor without rows, or with other ones.
            return Request(arguments=named, rows=1, batch_key=object(), alone=True, autocast=autocast)
        arguments |= {name: _one_per_row(arguments[name], rows) for name in numbers}
        return Request(
            arguments=arguments,
            rows=rows,
            batch_key=(self.point.name, autocast, tensor_trees.form(arguments)),
            autocast=autocast,
            keys=row_keys(arguments, rows) if self._row_cache is not None else (),
        )

    def answers(self, requests: Sequence[Request]) -> list[Any]:
        """What the module gives each of them, or `Raised`: in one batch, if that succeeds.

        After an error each goes alone, after too large a batch one half and then the other.
        """
        self.count.rows_needed += sum(request.rows for request in requests)
        return self._attempt(requests)

    def _attempt(self, requests: Sequence[Request]) -> list[Any]:
        batch_key, rows = requests[0].batch_key, sum(request.rows for request in requests)
        if len(requests) == 1 or rows <= self.max_rows.get(batch_key, rows):
            try:
                return self._batch(requests)
            except Exception as error:
                if is_fatal(error):
                    raise
                if len(requests) == 1:
                    # They have the module's tensors in them.
                    clear_frames(error.__traceback__)
                    return [Raised(error)]
                too_large = is_out_of_memory(error)
            # Outside the `except`: the traceback there keeps the failed batch's tensors in memory.
            if too_large:
                torch.cuda.empty_cache()
                self.max_rows[batch_key] = max(1, rows // 2)
            else:
                return [answer for request in requests for answer in self._attempt([request])]
        half = -(-len(requests) // 2)
        return [*self._attempt(requests[:half]), *self._attempt(requests[half:])]

    def _batch(self, requests: Sequence[Request]) -> list[Any]:
        arguments = tensor_trees.join([request.arguments for request in requests])
        if requests[0].alone:
            return [self._run(arguments, 1, requests[0].autocast)]
        if self._row_cache is not None and requests[0].keys:
            keys = [key for request in requests for key in request.keys]
            results = self._row_cache.complete(
                keys,
                lambda places: self._run(
                    tensor_trees.select(arguments, places), len(places), requests[0].autocast
                ),
            )
            return [concatenated_results(results, request.keys) for request in requests]
        sizes = [request.rows for request in requests]
        result = self._run(arguments, sum(sizes), requests[0].autocast, self._ladder)
        return [result] if len(sizes) == 1 else [*tensor_trees.split(result, sizes)]

    def _run(
        self, arguments: Arguments, rows: int, autocast: Autocast | None, ladder: Sequence[int] = ()
    ) -> Any:
        self.count.batches += 1
        self.count.rows_run += rows
        padding = next((size - rows for size in ladder if size >= rows), 0)
        if padding:
            self.count.rows_padded += padding
            last = tensor_trees.select(arguments, slice(rows - 1, rows))
            arguments = tensor_trees.join([arguments, *[last] * padding])
        arguments = self._on_device(arguments)
        with torch.autocast(autocast[0], autocast[1]) if autocast else nullcontext():
            result = self._forward(**arguments)
        return next(tensor_trees.split(result, [rows, padding])) if padding else result

    def _on_device(self, arguments: Arguments) -> Arguments:
        """Numbers may have been left on the host: modules bring one to their device, and not one a row."""
        numbers = self.point.numbers & arguments.keys()
        others = [arguments[name] for name in arguments.keys() - numbers]
        device = next(tensor_trees.tensors(others)).device
        # Not to be waited for: that would be waiting for all that the device has still to do.
        moved = {name: torch.as_tensor(arguments[name]).to(device, non_blocking=True) for name in numbers}
        return {**arguments, **moved}


def _autocast() -> Autocast | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


@contextmanager
def _autocast_off(autocast: Autocast | None) -> Iterator[None]:
    """Without it meanwhile: it is the thread's, and would be the other calls' too."""
    if autocast is None:
        yield
        return
    device, dtype = autocast
    torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, True)
        torch.set_autocast_dtype(device, dtype)


def _one_per_row(number: torch.Tensor | float, rows: int) -> torch.Tensor:
    """One number as a float for each row: schedulers disagree on whether timesteps are whole numbers."""
    return torch.as_tensor(number).float().reshape(-1).expand(rows)
