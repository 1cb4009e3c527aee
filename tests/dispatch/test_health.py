"""Whose fault failures are: a place that fails where others succeed is at fault itself."""

import pytest

from jobs.dispatch.health import MAX_FAILURES, Health


def failing(*shards: int | None) -> Health:
    """The health of a place `bad` that has failed with these shards, while `good` succeeded."""
    health = Health()
    for shard in shards:
        health.failed("bad", shard)
    health.succeeded("good")
    return health


@pytest.mark.parametrize("shards", [range(MAX_FAILURES), (None,) * MAX_FAILURES, (7, None, 8)])
def test_a_place_that_fails_with_several_shards_or_starts_while_others_succeed_is_bad(
    shards: tuple[int | None, ...],
) -> None:
    """With one failure less it may be chance."""
    assert failing(*shards).is_bad("bad")
    assert not failing(*shards[1:]).is_bad("bad")
    assert not failing(*shards).is_bad("good")


def test_one_shard_that_fails_again_and_again_says_nothing_of_the_place() -> None:
    """It may be the shard."""
    assert not failing(*[5] * (MAX_FAILURES + 1)).is_bad("bad")


def test_where_nobody_succeeds_nobody_is_bad() -> None:
    """The job is at fault, or what all have in common. What was before the failures does not count."""
    health = Health()
    health.succeeded("good")

    for shard in range(MAX_FAILURES):
        health.failed("bad", shard)

    assert not health.is_bad("bad")


def test_a_success_wipes_out_the_failures_before_it() -> None:
    """They must come in a row."""
    health = failing(*range(MAX_FAILURES - 1))

    health.succeeded("bad")
    health.failed("bad", 100)
    health.succeeded("good")

    assert not health.is_bad("bad")


def test_a_shard_that_fails_elsewhere_too_is_at_fault_itself() -> None:
    """Neither place is, whoever failed first."""
    health = failing(*range(MAX_FAILURES))
    for shard in range(MAX_FAILURES):
        health.failed("other", shard)
    health.succeeded("good")

    assert not health.is_bad("bad")
    assert not health.is_bad("other")
