"""Columns of `controls` that have images in them, taken apart into fields of one image each."""

import numpy as np
import pyarrow as pa

from schemas.systems.control_parameters import CONTROL_IMAGES

_IMAGE = CONTROL_IMAGES[0]
"""The name of the image in an entry."""


def has_images(arrow_type: pa.DataType) -> bool:
    """Whether the column is a list of structs with an image in each."""
    is_list = any(
        check(arrow_type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    return (
        is_list
        and pa.types.is_struct(arrow_type.value_type)
        and _IMAGE in {leaf.name for leaf in arrow_type.value_type}
    )


def images_apart(array: pa.Array) -> tuple[pa.Array, dict[str, pa.Array]]:
    """(the column without the images, the image of each position by its field)."""
    lengths = np.array([0 if row is None else row for row in _lengths(array)], dtype=np.int64)
    entries = array.flatten()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    images = {}
    for number, field in enumerate(CONTROL_IMAGES):
        indices = pa.array(starts[:-1] + number, mask=lengths <= number)
        images[field] = entries.field(_IMAGE).take(indices)
    names = [leaf.name for leaf in entries.type if leaf.name != _IMAGE]
    others = pa.StructArray.from_arrays([entries.field(name) for name in names], names=names)
    offsets = pa.array(
        starts, pa.int64(), mask=np.append(array.is_null().to_numpy(zero_copy_only=False), False)
    )
    return pa.LargeListArray.from_arrays(offsets, others), images


def _lengths(array: pa.Array) -> list[int | None]:
    lengths: list[int | None] = array.value_lengths().to_pylist()
    return lengths


def first_given(first: pa.Array, second: pa.Array) -> pa.Array:
    """For each row the value of the first array, or of the second where that is null."""
    rows = np.arange(len(first))
    missing = first.is_null().to_numpy(zero_copy_only=False)
    return pa.concat_arrays([first, second]).take(pa.array(np.where(missing, rows + len(first), rows)))
