"""An even choice of a few items out of many."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def by_key(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, in the order of the pairs."""
    values: dict[Key, list[Value]] = defaultdict(list)
    for key, value in pairs:
        values[key].append(value)
    return values


def spread(items: Sequence[Value], count: int) -> list[Value]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def share(strata: Mapping[Any, Sequence[Value]], count: int) -> list[Value]:
    """At most `count` items: an equal number from each stratum, or the whole stratum if it has fewer."""
    chosen: list[Value] = []
    for left, items in zip(range(len(strata), 0, -1), sorted(strata.values(), key=len), strict=True):
        chosen += spread(items, -(-(count - len(chosen)) // left))
    return chosen
