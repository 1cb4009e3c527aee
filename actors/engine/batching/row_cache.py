"""Results of a module by the row that it was given, so that equal prompts are encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from actors.engine.batching import tensor_trees
from actors.engine.quirks.async_transfers import on_host

CAPACITY_BYTES = 512 << 20
"""XL's encoders give 8 MB a prompt, Stable Diffusion's 0.2."""

RowKey = bytes
"""Equal for rows that a module cannot tell apart."""


class RowCache:
    """The results used longest ago go first when the bytes run out."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._results: OrderedDict[RowKey, Any] = OrderedDict()
        self._size_bytes = 0

    def get(self, keys: Sequence[RowKey]) -> Any | None:
        """The joined results of these rows; None where one of them is not known."""
        if any(key not in self._results for key in keys):
            return None
        for key in keys:
            self._results.move_to_end(key)
        return concatenated_results(self._results, keys)

    def complete(self, keys: Sequence[RowKey], run: Callable[[list[int]], Any]) -> dict[RowKey, Any]:
        """The result of each row, those not known yet from `run`, which is given their places in `keys`."""
        unknown = {key: place for place, key in reversed([*enumerate(keys)]) if key not in self._results}
        places = sorted(unknown.values())
        results = {key: self._results[key] for key in keys if key in self._results}
        if places:
            made = tensor_trees.split(run(places), [1] * len(places))
            # Rows of their own: a view would keep the whole batch alive.
            results |= {
                keys[place]: tensor_trees.select(row, [0]) for place, row in zip(places, made, strict=True)
            }
        for key in dict.fromkeys(keys):
            self._keep(key, results[key])
        return results

    def _keep(self, key: RowKey, result: Any) -> None:
        if key not in self._results:
            self._size_bytes += tensor_trees.size_bytes(result)
        self._results[key] = result
        self._results.move_to_end(key)
        while self._size_bytes > self._capacity_bytes:
            self._size_bytes -= tensor_trees.size_bytes(self._results.popitem(last=False)[1])


def concatenated_results(results: Mapping[RowKey, Any], keys: Sequence[RowKey]) -> Any:
    """The results of these rows, in memory of their own: pipelines change in place what they are given."""
    rows = [results[key] for key in keys]
    return tensor_trees.join(rows) if len(rows) > 1 else tensor_trees.select(rows[0], [0])


def row_keys(arguments: Mapping[str, Any], num_rows: int) -> tuple[RowKey, ...]:
    """Of each row of a module's arguments, tensors and plain values."""
    common = repr(tensor_trees.form(arguments)).encode()
    # As bytes: numpy has no bfloat16.
    rows = [
        on_host(tensor).reshape(num_rows, -1).contiguous().view(torch.uint8).numpy()
        for tensor in tensor_trees.tensors(arguments)
    ]
    return tuple(common + b"".join(each[place].tobytes() for each in rows) for place in range(num_rows))
