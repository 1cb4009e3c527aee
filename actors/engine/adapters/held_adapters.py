"""Files of adapters in memory: which of them are kept, and what is said of one that cannot be loaded."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from safetensors import SafetensorError

from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
from schemas.errors import SpecError
from schemas.wording.printable import in_one_line

logger = logging.getLogger(__name__)

_LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, SafetensorError),
)
"""The errors that the libraries raise for faulty files."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Raise SpecError with the name `what` where the block cannot load it, unless the machine is at fault."""
    try:
        yield
    except _LOADING_ERRORS as error:
        if is_out_of_memory(error) or is_fatal(error):
            raise
        raise SpecError(f"{what} cannot be loaded: {in_one_line(error)}") from error


class _Sized(Protocol):
    @property
    def size_bytes(self) -> int:
        """The size in memory."""


AdapterT = TypeVar("AdapterT", bound=_Sized)


class HeldAdapters(Generic[AdapterT]):
    """The adapters of one kind in one model's memory, up to a number of bytes.

    Beyond it, those that were used longest ago are dropped, except those in use.
    """

    def __init__(
        self,
        kind: str,
        find_file: Callable[[str], Path],
        *,
        capacity_bytes: int,
        load: Callable[[Path], AdapterT],
        drop: Callable[[AdapterT], None] = lambda _: None,
    ) -> None:
        """`kind`: what messages call one. `find_file` gives its file on this machine, by the spec's name.

        `drop` takes one out of all that `load` has put it into.
        """
        self._kind = kind
        self._find_file = find_file
        self._capacity_bytes = capacity_bytes
        self._load_file = load
        self._drop_loaded = drop
        self._loaded: OrderedDict[str, AdapterT] = OrderedDict()
        """By the spec's name; the last one was used last."""
        self._users: Counter[str] = Counter()

    @property
    def loaded(self) -> Mapping[str, AdapterT]:
        """Those in memory by the spec's name, as they come and go."""
        return self._loaded

    @contextmanager
    def held(self, names: Collection[str]) -> Iterator[None]:
        """While the block runs, these are in memory. SpecError if one of them cannot be loaded."""
        self._users.update(names)
        try:
            for name in names:
                if name not in self._loaded:
                    self._load(name)
                self._loaded.move_to_end(name)
            yield
        finally:
            self._users.subtract(names)

    def close(self) -> None:
        """Drop all of them."""
        for name in [*self._loaded]:
            self._drop_loaded(self._loaded.pop(name))

    def _load(self, name: str) -> None:
        file = self._find_file(name)
        self._make_room(file.stat().st_size)
        logger.info("loading adapter=%s kind=%s file=%s", name, self._kind, file)
        with loading(f"the {self._kind} `{name}`: {file}"):
            self._loaded[name] = self._load_file(file)
        # The file may have another precision than the modules, and so another size.
        self._make_room(0)

    def _make_room(self, size_bytes: int) -> None:
        kept_bytes = size_bytes + sum(adapter.size_bytes for adapter in self._loaded.values())
        for name in [*self._loaded]:
            if not self._users[name] and kept_bytes > self._capacity_bytes:
                kept_bytes -= self._loaded[name].size_bytes
                self._drop_loaded(self._loaded.pop(name))
