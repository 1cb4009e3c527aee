"""Tensor trees, the arguments and results of module calls: tensors in tuples, lists and dicts.

Rows are along dimension 0 of each tensor.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch


def form(value: Any) -> Hashable:
    """What trees must have in common to be joined: all but the number of rows and the tensors' elements."""
    if isinstance(value, torch.Tensor):
        return value.shape[1:], value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, form(each)) for key, each in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(form, value))
    return value if isinstance(value, Hashable) else ("object", id(value))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a tree, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from tensors(child)


def leading_sizes(value: Any) -> Iterator[int | None]:
    """The number of rows of each tensor of a tree; None for a tensor without dimensions."""
    return (tensor.shape[0] if tensor.ndim else None for tensor in tensors(value))


def join(values: Sequence[Any]) -> Any:
    """One tree with the rows of all these trees, one after the other; a single tree is returned itself."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(tuple(values))
    return _rebuilt(first, lambda key: join([value[key] for value in values]))


def join_padded(values: Sequence[Any], num_rows: Sequence[int]) -> Any:
    """One tree with the rows of all these trees, which are lists of tensors or single tensors.

    A tree that is None counts as zeros. A dimension of 1 is repeated where others are longer.
    """
    if len(values) == 1:
        return values[0]
    trees = [None if value is None else [*tensors(value)] for value in values]
    joined = []
    for leaves in zip(*(tree for tree in trees if tree is not None), strict=True):
        shape = [max(sizes) for sizes in zip(*(leaf.shape[1:] for leaf in leaves), strict=True)]
        zero, given = leaves[0].new_zeros(()), iter(leaves)
        joined.append(
            torch.cat(
                [
                    (zero if tree is None else next(given)).expand(rows, *shape)
                    for tree, rows in zip(trees, num_rows, strict=True)
                ]
            )
        )
    is_tensor = any(isinstance(value, torch.Tensor) for value in values)
    return joined[0] if is_tensor else joined


def select(value: Any, rows: slice | Sequence[int]) -> Any:
    """A tree of the same structure with only these rows: views if `rows` is a slice, otherwise copies."""
    if isinstance(value, torch.Tensor):
        if isinstance(rows, slice):
            return value[rows]
        # A list as an index would be copied to the tensor's device first, and the host would wait for that.
        return torch.cat([value[row : row + 1] for row in rows])
    return _rebuilt(value, lambda key: select(value[key], rows))


def contiguous(value: Any) -> Any:
    """The same tree, with each tensor that has other strides replaced by a copy."""
    if isinstance(value, torch.Tensor):
        return value.contiguous()
    return _rebuilt(value, lambda key: contiguous(value[key]))


def split(value: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """Yield trees of `sizes` consecutive rows; ValueError if a tensor has not exactly as many rows in all."""
    if any(rows != sum(sizes) for rows in leading_sizes(value)):
        raise ValueError(f"dimension 0 of every tensor must be {sum(sizes)}, not {[*leading_sizes(value)]}")
    start = 0
    for size in sizes:
        yield select(value, slice(start, start + size))
        start += size


def size_bytes(value: Any) -> int:
    """The size of all elements of a tree's tensors."""
    return sum(tensor.nbytes for tensor in tensors(value))


def _rebuilt(value: Any, child: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        # The outputs of diffusers and transformers are dicts too; their keys are their fields.
        return type(value)(**{key: child(key) for key in value})
    if isinstance(value, (tuple, list)):
        return type(value)(child(index) for index in range(len(value)))
    return value
