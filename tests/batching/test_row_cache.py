"""Results kept by the row that they were made of, as far as there is room."""

import torch

from actors.engine.batching.row_cache import RowCache


def row(number: float) -> torch.Tensor:
    """A result of 16 bytes."""
    return torch.full((1, 4), number, dtype=torch.float32)


def made_of(remembered: RowCache, numbers: list[int]) -> tuple[list[float], list[int]]:
    """What is given for rows of these numbers, and which of them had to be made."""
    made: list[int] = []

    def run(places: list[int]) -> torch.Tensor:
        made.extend(numbers[place] for place in places)
        return torch.cat([row(numbers[place]) for place in places])

    results = remembered.complete([bytes([number]) for number in numbers], run)
    return [results[bytes([number])][0, 0].item() for number in numbers], made


def test_only_rows_not_known_are_made() -> None:
    """Each once, however often it is in the batch."""
    remembered = RowCache()
    made_of(remembered, [1, 2])

    given, made = made_of(remembered, [3, 2, 3, 4, 1])

    assert given == [3, 2, 3, 4, 1]
    assert made == [3, 4]


def test_rows_are_given_only_when_all_are_known() -> None:
    """Otherwise whoever asks has to wait anyway."""
    remembered = RowCache()
    made_of(remembered, [1, 2])

    known = remembered.get([b"\x02", b"\x01"])

    assert known is not None
    assert known[:, 0].tolist() == [2, 1]
    assert remembered.get([b"\x01", b"\x03"]) is None


def test_the_row_used_longest_ago_goes_first() -> None:
    """With room for two, asking for a row keeps it."""
    remembered = RowCache(capacity_bytes=32)
    made_of(remembered, [1, 2])
    remembered.get([b"\x01"])

    made_of(remembered, [3])

    assert remembered.get([b"\x02"]) is None
    assert remembered.get([b"\x01", b"\x03"]) is not None


def test_a_row_that_a_batch_asks_for_again_is_kept() -> None:
    """It was used last, though others were made after it."""
    remembered = RowCache(capacity_bytes=32)
    made_of(remembered, [1, 2])

    made_of(remembered, [1])
    made_of(remembered, [3])

    assert remembered.get([b"\x02"]) is None
    assert remembered.get([b"\x01", b"\x03"]) is not None


def test_a_batch_larger_than_the_room_is_answered_all_the_same() -> None:
    """Nothing of it is kept but what fits."""
    remembered = RowCache(capacity_bytes=32)
    made_of(remembered, [4])

    given, made = made_of(remembered, [1, 2, 3, 4, 5])
    _, again = made_of(remembered, [1, 2, 3, 4, 5])

    assert given == [1, 2, 3, 4, 5]
    assert made == [1, 2, 3, 5]
    assert again == [1, 2, 3]


def test_a_row_larger_than_the_room_is_not_kept() -> None:
    """It is made each time."""
    remembered = RowCache(capacity_bytes=8)

    made = [made_of(remembered, [1]) for _ in range(2)]

    assert made == [([1], [1]), ([1], [1])]


def test_a_row_made_in_a_batch_does_not_keep_the_batch() -> None:
    """It would take the memory of all of them."""
    batch = torch.ones(3, 4)

    results = RowCache().complete([b"a", b"b", b"c"], lambda _: batch)

    assert [result.untyped_storage().nbytes() for result in results.values()] == [16] * 3


def test_a_row_takes_its_room_once() -> None:
    """However often it is used."""
    remembered = RowCache(capacity_bytes=32)

    made = [made_of(remembered, [1, 2])[1] for _ in range(3)]

    assert made == [[1, 2], [], []]
