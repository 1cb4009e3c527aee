"""The row cache: results of a module by the row that went in, so that equal prompts are encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from actors.engine.batching import tensor_trees
from actors.engine.quirks.async_transfers import on_host

CAPACITY_BYTES = 512 << 20
"""XL's encoders give 8 MB for each prompt, Stable Diffusion's 0.2 MB."""

RowKey = bytes
"""A row's key. Rows have equal keys if a module's arguments are the same for them."""


class RowCache:
    """Results by row key, up to a number of bytes; beyond it, the results used longest ago are dropped."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._results: OrderedDict[RowKey, Any] = OrderedDict()
        self._size_bytes = 0

    def get(self, keys: Sequence[RowKey]) -> Any | None:
        """The joined results of these rows; None if one of them is not in the cache."""
        if any(key not in self._results for key in keys):
            return None
        for key in keys:
            self._results.move_to_end(key)
        return concatenated_results(self._results, keys)

    def complete(self, keys: Sequence[RowKey], run: Callable[[list[int]], Any]) -> dict[RowKey, Any]:
        """The result of each row.

        Results that the cache has not come from `run`, which gets the indices of their rows in `keys`.
        """
        missing = {key: index for index, key in reversed([*enumerate(keys)]) if key not in self._results}
        indices = sorted(missing.values())
        results = {key: self._results[key] for key in keys if key in self._results}
        if indices:
            rows = tensor_trees.split(run(indices), [1] * len(indices))
            # A copy of each row: a view would keep the whole batch in memory.
            results |= {
                keys[index]: tensor_trees.select(row, [0]) for index, row in zip(indices, rows, strict=True)
            }
        for key in dict.fromkeys(keys):
            self._store(key, results[key])
        return results

    def _store(self, key: RowKey, result: Any) -> None:
        if key not in self._results:
            self._size_bytes += tensor_trees.size_bytes(result)
        self._results[key] = result
        self._results.move_to_end(key)
        while self._size_bytes > self._capacity_bytes:
            self._size_bytes -= tensor_trees.size_bytes(self._results.popitem(last=False)[1])


def concatenated_results(results: Mapping[RowKey, Any], keys: Sequence[RowKey]) -> Any:
    """The results of these rows joined into a copy, since pipelines change results in place."""
    rows = [results[key] for key in keys]
    return tensor_trees.join(rows) if len(rows) > 1 else tensor_trees.select(rows[0], [0])


def row_keys(arguments: Any, num_rows: int) -> tuple[RowKey, ...]:
    """The key of each row of a module's arguments, a tree of tensors and plain values."""
    common = repr(tensor_trees.form(arguments)).encode()
    # Viewed as bytes, since numpy has no bfloat16.
    arrays = [
        on_host(tensor).reshape(num_rows, -1).contiguous().view(torch.uint8).numpy()
        for tensor in tensor_trees.tensors(arguments)
    ]
    return tuple(common + b"".join(array[row].tobytes() for array in arrays) for row in range(num_rows))
