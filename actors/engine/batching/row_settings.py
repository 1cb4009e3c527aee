"""What calls set of a module beside its arguments, and how a batch has it for each of its rows."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

Setting = Hashable
"""What a call sets of a module, such as the LoRAs of its rows; None sets nothing."""


class RowSettings(Protocol):
    """How a module is set, for each row of a batch."""

    def of(self, call: Any) -> Setting:
        """What a call sets of this module; equal for calls that set the same."""

    def applied(self, settings: Sequence[Setting]) -> AbstractContextManager[None]:
        """While the block runs, row i of what the module gets has `settings[i]`."""


class _Several:
    """Settings of several kinds, such as LoRAs and IP-Adapters (`RowSettings`)."""

    def __init__(self, kinds: Sequence[RowSettings]) -> None:
        self._kinds = kinds

    def of(self, call: Any) -> tuple[Setting, ...]:
        """What the call sets of each kind."""
        return tuple(kind.of(call) for kind in self._kinds)

    @contextmanager
    def applied(self, settings: Sequence[Any]) -> Iterator[None]:
        """While the block runs, row i of what the module gets has `settings[i]`."""
        with ExitStack() as stack:
            for kind, of_rows in zip(self._kinds, zip(*settings, strict=True), strict=True):
                stack.enter_context(kind.applied(of_rows))
            yield


def all_settings(kinds: Sequence[RowSettings]) -> RowSettings | None:
    """The settings of all these kinds together; None if there are none."""
    return _Several(kinds) if len(kinds) > 1 else next(iter(kinds), None)
