"""Arguments and results of module calls: tensors in tuples, lists and dicts, with rows along dimension 0."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch


def form(value: Any) -> Hashable:
    """What two values must have in common to be joined: everything but the number of rows."""
    if isinstance(value, torch.Tensor):
        return value.shape[1:], value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, form(each)) for key, each in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(form, value))
    return value if isinstance(value, Hashable) else ("object", id(value))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in it, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def leading_sizes(value: Any) -> Iterator[int | None]:
    """Rows of each tensor in it; None for a tensor of a single number."""
    return (tensor.shape[0] if tensor.ndim else None for tensor in tensors(value))


def join(values: Sequence[Any]) -> Any:
    """The rows of values of one form, one after the other; of a single value, itself."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(tuple(values))
    return _rebuilt(first, lambda key: join([value[key] for value in values]))


def select(value: Any, rows: slice | Sequence[int]) -> Any:
    """Some of a value's rows in the same structure; views of them where `rows` is a slice."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    return _rebuilt(value, lambda key: select(value[key], rows))


def split(value: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """A value's rows in consecutive pieces; ValueError where a tensor has other rows, or none."""
    if any(rows != sum(sizes) for rows in leading_sizes(value)):
        raise ValueError(f"{sum(sizes)} rows expected, not {[*leading_sizes(value)]}")
    start = 0
    for size in sizes:
        yield select(value, slice(start, start + size))
        start += size


def size_bytes(value: Any) -> int:
    """Of its tensors' elements."""
    return sum(tensor.nbytes for tensor in tensors(value))


def _rebuilt(value: Any, part: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        # diffusers' and transformers' outputs are dicts too, whose fields are their keys.
        return type(value)(**{key: part(key) for key in value})
    if isinstance(value, (tuple, list)):
        return type(value)(part(place) for place in range(len(value)))
    return value
