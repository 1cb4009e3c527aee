"""Rows of whatever modules give are joined and taken apart again, in the structure that they came in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from transformers.utils import ModelOutput

from actors.engine.batching import tensor_trees
from tests.support.pipelines.operations import Operations


@dataclass
class Sampled(BaseOutput):
    """As diffusers' modules give it."""

    sample: torch.Tensor
    extra: torch.Tensor | None = None


@dataclass
class Encoded(ModelOutput):
    """As transformers' modules give it."""

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def numbered(rows: int, width: int = 2) -> torch.Tensor:
    """Rows that differ."""
    return torch.arange(rows * width).reshape(rows, width)


STRUCTURES: dict[str, Callable[[int], Any]] = {
    "tensor": numbered,
    "tuple": lambda rows: (numbered(rows), numbered(rows, 5)),
    "list": lambda rows: [numbered(rows), (numbered(rows, 3),)],
    "dict": lambda rows: {"a": numbered(rows), "deeper": {"b": numbered(rows, 3)}, "scale": 0.5},
    "with none": lambda rows: {"a": numbered(rows), "b": None, "c": "text"},
    "diffusers": lambda rows: Sampled(sample=numbered(rows)),
    "transformers": lambda rows: Encoded(
        last_hidden_state=numbered(rows, 4), hidden_states=(numbered(rows), numbered(rows, 3))
    ),
}


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES)
def structure(request: pytest.FixtureRequest) -> Callable[[int], Any]:
    """Makes so many rows of one."""
    made: Callable[[int], Any] = request.param
    return made


def assert_equal(value: Any, expected: Any) -> None:
    """The same structure with the same numbers."""
    assert type(value) is type(expected)
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, expected)
    elif isinstance(value, dict):
        assert value.keys() == expected.keys()
        for key in value:
            assert_equal(value[key], expected[key])
    elif isinstance(value, (tuple, list)):
        for each, other in zip(value, expected, strict=True):
            assert_equal(each, other)
    else:
        assert value == expected


def test_what_is_split_is_joined_again(structure: Callable[[int], Any]) -> None:
    """Rows in their order, attributes where they were."""
    whole = structure(6)

    pieces = [*tensor_trees.split(whole, [1, 3, 2])]

    assert {*map(type, pieces)} == {type(whole)}
    assert [{*tensor_trees.leading_sizes(piece)} for piece in pieces] == [{1}, {3}, {2}]
    assert_equal(tensor_trees.join(pieces), whole)


def test_rows_are_selected_by_place(structure: Callable[[int], Any]) -> None:
    """In the order asked for."""
    whole = structure(4)
    first, second, third, fourth = tensor_trees.split(whole, [1] * 4)

    assert_equal(tensor_trees.select(whole, [2, 0]), tensor_trees.join([third, first]))
    assert_equal(tensor_trees.select(whole, slice(1, 4)), tensor_trees.join([second, third, fourth]))


def test_outputs_keep_their_attributes() -> None:
    """A pipeline reads `.sample`, `[0]` and `.hidden_states[-2]`."""
    _, encoded = tensor_trees.split(STRUCTURES["transformers"](3), [1, 2])
    _, sampled = tensor_trees.split(STRUCTURES["diffusers"](3), [1, 2])

    assert encoded.hidden_states[-2].shape == (2, 2)
    assert encoded[0] is encoded.last_hidden_state
    assert encoded.pooler_output is None
    assert sampled.sample.shape == sampled[0].shape == (2, 2)


def test_values_of_one_form_differ_in_rows_only(structure: Callable[[int], Any]) -> None:
    """That is what makes them fit together."""
    assert tensor_trees.form(structure(1)) == tensor_trees.form(structure(5))


@pytest.mark.parametrize(
    "other",
    [
        {"a": numbered(2, 3), "scale": 1.0},
        {"a": numbered(2).float(), "scale": 1.0},
        {"a": numbered(2).to("meta"), "scale": 1.0},
        {"a": numbered(2), "scale": 0.5},
        {"b": numbered(2), "scale": 1.0},
        {"a": numbered(2)},
        {"a": (numbered(2),), "scale": 1.0},
    ],
    ids=["size", "dtype", "device", "plain value", "name", "missing", "structure"],
)
def test_values_that_differ_otherwise_have_another_form(other: dict[str, Any]) -> None:
    """Joined, they would change each other."""
    assert tensor_trees.form(other) != tensor_trees.form({"a": numbered(2), "scale": 1.0})


def test_an_object_without_a_hash_has_a_form_of_its_own() -> None:
    """It is the same as itself and nothing else."""
    one, other = bytearray(b"a"), bytearray(b"a")

    assert tensor_trees.form([one]) == tensor_trees.form([one])
    assert tensor_trees.form([one]) != tensor_trees.form([other])


def test_sizes_count_every_tensor() -> None:
    """Six int64 rows of two, and of five."""
    assert tensor_trees.size_bytes(STRUCTURES["tuple"](6)) == 6 * (2 + 5) * 8
    assert tensor_trees.size_bytes({"text": "none"}) == 0


def test_a_number_has_no_rows() -> None:
    """It is neither joined nor split."""
    assert [*tensor_trees.leading_sizes({"a": numbered(3), "b": (torch.tensor(1.0),)})] == [3, None]


def test_chosen_rows_are_joined_from_slices(structure: Callable[[int], Any]) -> None:
    """A list as an index would be copied to the device, and the host would wait until that is done."""
    tree = structure(4)

    with Operations() as operations:
        chosen = tensor_trees.select(tree, [2, 0])

    assert_equal(chosen, tensor_trees.join([tensor_trees.select(tree, slice(i, i + 1)) for i in (2, 0)]))
    assert {name for name in operations.names if "index" in name} == set()
