"""The parts that an output has: their names are parsed strictly, and only their footers are read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from actors.storage.objects import StoredObject
from actors.storage.output import Output
from jobs.output.strict_json import parse_json
from jobs.output.tally import Abandoned
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import RefusedError
from schemas.job import StoredCount
from schemas.output_layout import COUNTS_KEY, ERROR_CODES_KEY, PARTS_FOLDER, parse_part_file
from schemas.wording.amounts import counted

FOOTERS_AT_ONCE = 16
"""Footers that are read at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One committed part."""

    index: int
    """The index of its shard."""
    stored: StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over parts: input rows by status, images and bytes."""

    ok: int = 0
    filtered: int = 0
    failed: int = 0
    images: int = 0
    size_bytes: int = 0
    error_codes: tuple[tuple[str, int], ...] = ()
    """(error_code, number of failed rows), the most frequent code first."""

    @property
    def rows(self) -> int:
        """Input rows with an outcome."""
        return self.ok + self.filtered + self.failed

    def __add__(self, other: "Totals") -> "Totals":
        codes = Counter(dict(self.error_codes)) + Counter(dict(other.error_codes))
        return Totals(
            ok=self.ok + other.ok,
            filtered=self.filtered + other.filtered,
            failed=self.failed + other.failed,
            images=self.images + other.images,
            size_bytes=self.size_bytes + other.size_bytes,
            error_codes=tuple(codes.most_common()),
        )


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


def list_parts(output: Output, num_shards: int) -> Iterator[PartFile]:
    """The job's parts. Other files in `data/` do not belong to darkroom and are ignored.

    RefusedError where a part belongs to a job with another number of shards.
    """
    folder = output.uri(PARTS_FOLDER)
    for stored in output.storage.list(folder):
        parsed = parse_part_file(stored.uri.removeprefix(f"{folder}/"))
        if parsed is None:
            continue
        index, of = parsed
        if of != num_shards or index >= num_shards:
            raise RefusedError(
                f"{stored.uri} is a part of another job: this job has {counted(num_shards, 'part')}"
            )
        yield PartFile(index=index, stored=stored)


def done_shards(output: Output, num_shards: int) -> bytearray:
    """One byte per shard, 1 if its part exists: a million shards take a megabyte."""
    done = bytearray(num_shards)
    for part in list_parts(output, num_shards):
        done[part.index] = 1
    return done


def totals_of(output: Output, parts: Iterable[PartFile]) -> Totals:
    """The sums over these parts, from their footers."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return sum(pool.map(lambda part: _read_totals(output, part), parts), Totals())


def _read_totals(output: Output, part: PartFile) -> Totals:
    uri = part.stored.uri
    not_a_part = parquet_errors_as(RefusedError, f"{uri} is not a darkroom part")
    with not_a_part, output.storage.open(uri) as file:
        footer = pq.read_metadata(file).metadata or {}
    return replace(totals_in(footer, uri), size_bytes=part.stored.size_bytes)


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


def still_missing(abandoned: list[Abandoned], output: Output, num_shards: int) -> list[Abandoned]:
    """The abandoned shards that still have no part: a worker that counted as dead may have written one."""
    if not abandoned:
        return []
    done = done_shards(output, num_shards)
    return [left_out for left_out in abandoned if not done[left_out.shard.index]]


def output_totals(output: Output, num_shards: int) -> Totals:
    """The sums over all of an output's parts."""
    return totals_of(output, list_parts(output, num_shards))
