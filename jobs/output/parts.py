"""The parts that an output has: their names are parsed strictly, and only their footers are read."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from actors.inputs.footers import FooterReader
from actors.storage.output import Output
from jobs.in_flight import map_in_flight
from jobs.output.figures import Totals
from jobs.output.strict_json import parse_json
from jobs.output.tally import Abandoned
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import RefusedError
from schemas.job import StoredCount
from schemas.output_layout import COUNTS_KEY, ERROR_CODES_KEY, PARTS_FOLDER, ShardNames, parse_part_file
from schemas.wording.amounts import counted

FOOTERS_AT_ONCE = 16
"""Footers that are read at the same time."""
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One committed part."""

    index: int
    """The index of its shard."""
    uri: str
    size_bytes: int


class Parts(Sequence[PartFile]):
    """The parts that an output has, in the order of their shards. Each takes 16 bytes of memory."""

    def __init__(self, output: Output, names: ShardNames, indices: Numbers, sizes: Numbers) -> None:
        """`indices` and `sizes`: the shard's index and the size in bytes of each part, in any order."""
        order = np.argsort(indices)
        self._output = output
        self._names = names
        self._indices = indices[order]
        self._sizes = sizes[order]

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, position: int) -> PartFile: ...

    @overload
    def __getitem__(self, position: slice) -> "Parts": ...

    def __getitem__(self, position: int | slice) -> "PartFile | Parts":
        if isinstance(position, slice):
            chosen = self._indices[position], self._sizes[position]
            return Parts(self._output, self._names, *chosen)
        index = int(self._indices[position])
        uri = self._output.part_uri(self._names.name(index))
        return PartFile(index=index, uri=uri, size_bytes=int(self._sizes[position]))

    @property
    def num_shards(self) -> int:
        """The number of all shards of the job, with or without a part."""
        return self._names.num_shards

    @property
    def are_all(self) -> bool:
        """Whether every shard has its part."""
        return len(self) == self.num_shards

    @property
    def size_bytes(self) -> int:
        """The size of all these parts together."""
        return int(self._sizes.sum())

    @property
    def largest_bytes(self) -> int:
        """The size of the largest of these parts; 0 if there are none."""
        return int(self._sizes.max(initial=0))

    def has(self, index: int) -> bool:
        """Whether the shard with this index has its part."""
        position = np.searchsorted(self._indices, index)
        return bool((self._indices[position : position + 1] == index).any())

    def done(self) -> bytearray:
        """One byte per shard, 1 if its part exists: a million shards take a megabyte."""
        done = np.zeros(self.num_shards, np.uint8)
        done[self._indices] = 1
        return bytearray(done)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """The value of `darkroom.counts` in a part's footer."""

    ok: StoredCount
    filtered: StoredCount
    failed: StoredCount
    images: StoredCount


Entry = TypeVar("Entry")

_COUNTS = TypeAdapter(_Counts)
_ERROR_CODES = TypeAdapter(dict[str, StoredCount])


def list_parts(output: Output, names: ShardNames) -> Parts:
    """The job's parts. Other files in `data/` do not belong to darkroom and are ignored.

    `names`: those of the job's shards. RefusedError where there is a part that has none of them.
    """
    indices, sizes = array("q"), array("q")
    for stored in output.storage.list_sizes(output.uri(PARTS_FOLDER)):
        index = part_index(output, names, stored.uri)
        if index is not None:
            indices.append(index)
            sizes.append(stored.size_bytes)
    return Parts(output, names, np.array(indices, np.int64), np.array(sizes, np.int64))


def part_index(output: Output, names: ShardNames, uri: str) -> int | None:
    """The index of the shard whose part this object in `data/` is; None if it is not a part.

    RefusedError where it is a part of a job with other shards, or has a second name of a part.
    """
    parsed = parse_part_file(uri.removeprefix(f"{output.uri(PARTS_FOLDER)}/"))
    if parsed is None:
        return None
    index = names.index_of(parsed)
    if index is None:
        num_parts = counted(names.num_shards, "part")
        raise RefusedError(f"{uri} is a part of another job: this job has {num_parts}, and none of this name")
    if uri != (right_uri := output.part_uri(names.name(index))):
        raise RefusedError(f"{uri} is another name of the part {right_uri.rpartition('/')[2]}; move it away")
    return index


def totals_of(output: Output, parts: Iterable[PartFile]) -> Totals:
    """The sums over these parts, from their footers."""
    footers = FooterReader(output.storage)
    totals = map_in_flight(lambda part: _read_totals(footers, part), parts, at_once=FOOTERS_AT_ONCE)
    return sum(totals, Totals())


def _read_totals(footers: FooterReader, part: PartFile) -> Totals:
    with parquet_errors_as(RefusedError, f"{part.uri} is not a darkroom part"):
        footer = footers.read(part.uri).metadata or {}
    return replace(totals_in(footer, part.uri), size_bytes=part.size_bytes)


def totals_in(footer: Mapping[bytes, bytes], name: str) -> Totals:
    """The totals in a part's footer; RefusedError, with the part's `name`, if they are missing or invalid."""
    counts = _entry(footer, COUNTS_KEY, _COUNTS, name)
    codes = _entry(footer, ERROR_CODES_KEY, _ERROR_CODES, name)
    return Totals(**asdict(counts), error_codes=tuple(codes.items()))


def _entry(footer: Mapping[bytes, bytes], key: bytes, adapter: TypeAdapter[Entry], name: str) -> Entry:
    """The parsed value of one key of a part's footer."""
    data = footer.get(key)
    if data is None:
        raise RefusedError(f"{name} is not a darkroom part: its footer has no `{key.decode()}`")
    return parse_json(data, adapter, f"`{key.decode()}` in the footer of {name}")


def still_missing(abandoned: list[Abandoned], output: Output, names: ShardNames) -> list[Abandoned]:
    """The abandoned shards that still have no part: a worker that counted as dead may have written one."""
    if not abandoned:
        return []
    parts = list_parts(output, names)
    return [left_out for left_out in abandoned if not parts.has(left_out.shard.index)]


def output_totals(output: Output, names: ShardNames) -> Totals:
    """The sums over all of an output's parts."""
    return totals_of(output, list_parts(output, names))
