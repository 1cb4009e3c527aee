"""Merged modules: calls are suspended at them, and answered together in batches."""

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
from actors.engine.batching.row_settings import RowSettings, Setting
from actors.engine.quirks.torch_errors import ends_the_run, is_out_of_memory

Arguments = Mapping[str, Any]
"""The arguments of a module call, by the names in the module's signature."""

Autocast = tuple[str, torch.dtype]
"""A device type and the dtype of torch.autocast on it."""

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePoint:
    """A module whose calls are merged."""

    name: str
    """The name under which the calls are counted, such as `vae.decoder`."""
    module: torch.nn.Module
    stage: Stage
    numbers: frozenset[str] = frozenset()
    """The arguments that are one number for all rows of a call; in a batch each row has its own float."""
    caches_rows: bool = False
    """Whether the module has a row cache, which answers rows that it has had before."""
    forward: Callable[..., Any] | None = None
    """A function that runs instead of the module's own `forward`, such as a compiled one."""
    settings: RowSettings | None = None
    """What calls set of the module beside its arguments; None if they set nothing."""
    additions: frozenset[str] = frozenset()
    """The arguments that are added to what the module computes. Rows without them are as rows with zeros, so
    they do not keep calls from being merged."""
    known_answer: Callable[[Arguments], Any] = lambda _: None
    """The result for arguments for which the module need not run; None for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call's call of a merged module, for which the call is suspended."""

    arguments: Arguments
    rows: int
    images: int
    """How many rows of a batch of calls the request takes: the module's rows or the call's own, whichever are
    fewer.

    With guidance a module gets two rows for each row of the call. Pipelines encode images one by one, however
    many the call generates.
    """
    batch_key: Hashable
    """Requests with equal batch keys can go through the module together."""
    keys: tuple[RowKey, ...] = ()
    """The row cache's key of each row; empty if the module has no row cache."""
    runs_alone: bool = False
    """Whether the module must run for it without other requests' rows and without padding."""
    autocast: Autocast | None = None
    """The autocast under which the module is called, as diffusers' depth2img calls its depth estimator."""
    setting: Setting = None
    """What the call sets of the module; it applies to each of its rows."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An answer that is an error."""

    error: Exception


@dataclass(slots=True)
class CallCount:
    """How much work went through a module. The counts are the same on every machine."""

    batches: int = 0
    """How often the module ran."""
    rows_run: int = 0
    """How many rows it ran for, without padding; rows that run again after an error count again."""
    rows_padded: int = 0
    """How many rows of padding it ran for."""
    rows_needed: int = 0
    """How many rows the calls asked it for: those that the row cache answers count, repeats after an error do
    not."""
    images: int = 0
    """How many rows of calls were in all its batches: with guidance the module runs two rows for each."""

    def __add__(self, other: "CallCount") -> "CallCount":
        return CallCount(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class MergedModule:
    """A merge point during a run of the batcher."""

    def __init__(self, point: MergePoint, ladder: Sequence[int] = ()) -> None:
        """`ladder`: the numbers of images, ascending, to which the denoiser's batches are padded."""
        self.point = point
        self.count = CallCount()
        self.max_rows: dict[Hashable, int] = {}
        """The most rows that fit in memory together, by batch key; no entry until a batch did not fit."""
        self._ladder = ladder if point.stage is Stage.DENOISE else ()
        self._own_forward = point.module.forward
        self._forward = point.forward or point.module.forward
        parameters = signature(point.module.forward).parameters
        self._names = [name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL]
        self._defaults = {name: parameter.default for name, parameter in parameters.items()}
        self._row_cache = RowCache() if point.caches_rows else None

    @contextmanager
    def patched(
        self, current_call: Callable[[], Any], suspend: Callable[["MergedModule", Request], Any]
    ) -> Iterator[None]:
        """While the block runs, a caller within a call gets what `suspend` returns.

        `current_call` gives the call, or None outside of calls: then the module runs as usual. Rows that the
        row cache has are returned at once.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = current_call()
            if call is None:
                return self._own_forward(*args, **kwargs)
            named = {**dict(zip(self._names, args, strict=False)), **kwargs}
            known = self.point.known_answer(named)
            if known is not None:
                return known
            request = self._request(named, call)
            cached = self._row_cache.get(request.keys) if self._row_cache and request.keys else None
            if cached is None:
                with _autocast_off(request.autocast):
                    return suspend(self, request)
            self.count.rows_needed += request.rows
            return cached

        module = self.point.module
        before = vars(module).get("forward")
        # For the run only: a module with a function that refers back to it would not be freed in time.
        module.forward = forward
        try:
            yield
        finally:
            if before is None:
                del module.forward
            else:
                module.forward = before

    def _request(self, named: Arguments, call: Any) -> Request:
        # Some pipelines leave an argument out where others pass None, its default.
        left_out = {name for name in named if named[name] is None and self._defaults.get(name) is None}
        arguments = {name: named[name] for name in sorted(named.keys() - left_out)}
        numbers = self.point.numbers & arguments.keys()
        autocast = _autocast()
        settings = self.point.settings
        setting = settings.of(call) if settings else None
        tensors = [*tensor_trees.tensors([arguments[name] for name in arguments.keys() - numbers])]
        sizes = set(tensor_trees.leading_sizes(tensors))
        rows = next(iter(sizes)) if len(sizes) == 1 else None
        if rows is None:
            # A tensor has no rows, or another number of rows.
            return Request(
                arguments=named,
                rows=1,
                images=1,
                batch_key=object(),
                runs_alone=True,
                autocast=autocast,
                setting=setting,
            )
        arguments |= {name: _one_per_row(arguments[name], rows) for name in numbers}
        return Request(
            arguments=arguments,
            rows=rows,
            images=min(rows, call.rows),
            batch_key=(self.point.name, autocast, tensor_trees.form(self._own(arguments))),
            autocast=autocast,
            keys=row_keys((arguments, setting), rows) if self._row_cache is not None else (),
            setting=setting,
        )

    def _own(self, arguments: Arguments) -> Arguments:
        """The arguments without the additions."""
        return {name: value for name, value in arguments.items() if name not in self.point.additions}

    def _joined(self, requests: Sequence[Request]) -> Arguments:
        """The arguments of all requests together; additions that some of them lack are zeros there."""
        joined: dict[str, Any] = tensor_trees.join([self._own(request.arguments) for request in requests])
        present = {name for request in requests for name in self.point.additions & request.arguments.keys()}
        rows = [request.rows for request in requests]
        return joined | {
            name: tensor_trees.join_padded([request.arguments.get(name) for request in requests], rows)
            for name in sorted(present)
        }

    def answers(self, requests: Sequence[Request]) -> list[Any]:
        """The module's result for each request, or `Raised`.

        All requests go in one batch. If it fails, each goes alone; if it is too large for the memory, one
        half goes after the other.
        """
        self.count.rows_needed += sum(request.rows for request in requests)
        return self._attempt(requests)

    def _attempt(self, requests: Sequence[Request]) -> list[Any]:
        batch_key, rows = requests[0].batch_key, sum(request.rows for request in requests)
        if len(requests) == 1 or rows <= self.max_rows.get(batch_key, rows):
            try:
                return self._batch(requests)
            except Exception as error:
                if ends_the_run(error):
                    raise
                if len(requests) == 1:
                    # The frames hold the module's tensors.
                    clear_frames(error.__traceback__)
                    return [Raised(error)]
                too_large = is_out_of_memory(error)
            # Not in the `except` block, where the traceback keeps the failed batch's tensors in memory.
            if too_large:
                torch.cuda.empty_cache()
                self.max_rows[batch_key] = max(1, rows // 2)
            else:
                return [answer for request in requests for answer in self._attempt([request])]
        half = -(-len(requests) // 2)
        return [*self._attempt(requests[:half]), *self._attempt(requests[half:])]

    def _batch(self, requests: Sequence[Request]) -> list[Any]:
        if requests[0].runs_alone:
            return [self._run(requests[0].arguments, requests[0].autocast, [requests[0].setting])]
        arguments = self._joined(requests)
        row_settings = [request.setting for request in requests for _ in range(request.rows)]
        if self._row_cache is not None and requests[0].keys:
            keys = [key for request in requests for key in request.keys]
            results = self._row_cache.complete(
                keys,
                lambda indices: self._run(
                    tensor_trees.select(arguments, indices),
                    requests[0].autocast,
                    [row_settings[index] for index in indices],
                ),
            )
            return [concatenated_results(results, request.keys) for request in requests]
        sizes = [request.rows for request in requests]
        padding = self._padding(sum(sizes), sum(request.images for request in requests))
        result = self._run(arguments, requests[0].autocast, row_settings, padding)
        return [result] if len(sizes) == 1 else [*tensor_trees.split(result, sizes)]

    def _padding(self, rows: int, images: int) -> int:
        """The rows that are added to a batch: its images take one row each, two with guidance, or three."""
        rows_an_image = -(-rows // images)
        return next((step * rows_an_image - rows for step in self._ladder if step * rows_an_image >= rows), 0)

    def _run(
        self,
        arguments: Arguments,
        autocast: Autocast | None,
        settings: Sequence[Setting],
        padding: int = 0,
    ) -> Any:
        """The module's result for a batch; there is a setting for each of its rows."""
        rows = len(settings)
        self.count.batches += 1
        self.count.rows_run += rows
        if padding:
            self.count.rows_padded += padding
            last = tensor_trees.select(arguments, slice(rows - 1, rows))
            arguments = tensor_trees.join([arguments, *[last] * padding])
            settings = [*settings, *[settings[-1]] * padding]
        arguments = self._on_device(arguments)
        applied = self.point.settings.applied(settings) if self.point.settings else nullcontext()
        with torch.autocast(autocast[0], autocast[1]) if autocast else nullcontext(), applied:
            result = self._forward(**arguments)
        return next(tensor_trees.split(result, [rows, padding])) if padding else result

    def _on_device(self, arguments: Arguments) -> Arguments:
        """The arguments with the numbers on the device of the others.

        Numbers may be on the host: UNets of diffusers 0.42.1 move a single number to their device, but not
        one for each row.
        """
        numbers = self.point.numbers & arguments.keys()
        others = [arguments[name] for name in arguments.keys() - numbers]
        device = next(tensor_trees.tensors(others)).device
        # A blocking copy would wait for all work that the device has still to do.
        moved = {name: torch.as_tensor(arguments[name]).to(device, non_blocking=True) for name in numbers}
        return {**arguments, **moved}


def _autocast() -> Autocast | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


@contextmanager
def _autocast_off(autocast: Autocast | None) -> Iterator[None]:
    """Switch autocast off while the block runs: it belongs to the thread, and would apply to other calls."""
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
    """The number as a float for each row: timesteps are whole numbers in some schedulers only."""
    return torch.as_tensor(number).float().reshape(-1).expand(rows)
