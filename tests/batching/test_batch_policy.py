"""Whose turn it is, told from plain numbers: no torch and no greenlet is needed."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from actors.engine.batching.batch_policy import MAX_BATCH_KEYS, BatchPolicy, Stage
from tests.support.running import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A call that waits at a merge point."""

    name: str
    stage: Stage
    batch_key: str = "512x512"
    rows: int = 1
    module_rows: int = 1
    max_module_rows: int | None = None


def calls(stage: Stage, rows: int, batch_key: str = "512x512") -> list[Waiting]:
    return [Waiting(name=f"{stage.name}{i}", stage=stage, batch_key=batch_key) for i in range(rows)]


def next_names(policy: BatchPolicy[Waiting], suspended: list[Waiting]) -> list[str]:
    return [call.name for call in policy.next_batch(policy.groups(suspended))]


def wants_more(policy: BatchPolicy[Waiting], suspended: list[Waiting]) -> bool:
    return policy.wants_more(policy.groups(suspended))


def test_a_full_denoising_batch_comes_before_encoding() -> None:
    """It is the work that a device is paid for."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)

    batch = next_names(policy, [*calls(Stage.ENCODE, 2), *calls(Stage.DENOISE, 4)])

    assert batch == ["DENOISE0", "DENOISE1", "DENOISE2", "DENOISE3"]


def test_encoding_comes_before_a_denoising_batch_that_is_not_full() -> None:
    """It brings the rows that fill the next one."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)

    batch = next_names(policy, [*calls(Stage.DENOISE, 3), *calls(Stage.ENCODE, 2)])

    assert batch == ["ENCODE0", "ENCODE1"]


@pytest.mark.parametrize(("waiting", "first"), [(1, "DENOISE"), (2, "DECODE")])
def test_decoding_waits_for_half_a_batch(waiting: int, first: str) -> None:
    """Of one size; a decoder that is asked for each image alone costs the most."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)

    batch = next_names(policy, [*calls(Stage.DENOISE, 4), *calls(Stage.DECODE, waiting)])

    assert {name.rstrip("0123456789") for name in batch} == {first}


def test_images_of_many_sizes_are_decoded_when_they_fill_a_batch_together() -> None:
    """Otherwise one of each size could wait until the end, all in memory."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)
    decode = [call for size in "abcd" for call in calls(Stage.DECODE, 1, size)]

    before = next_names(policy, [*calls(Stage.DENOISE, 4), *decode[:3]])
    then = next_names(policy, [*calls(Stage.DENOISE, 4), *decode])

    assert before[0] == "DENOISE0"
    assert then == ["DECODE0"]


def test_a_batch_has_one_key_and_the_fullest_group_goes_first() -> None:
    """Images of two sizes cannot go through the module together."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)
    small, large = calls(Stage.DENOISE, 2, "512x512"), calls(Stage.DENOISE, 3, "768x768")

    groups = policy.groups([*small, *large])

    assert [call.batch_key for call in policy.next_batch(groups)] == ["768x768"] * 3


def test_a_batch_takes_the_oldest_call_however_large_and_then_what_fits() -> None:
    """A later call that fits goes with it; one that does not waits."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)
    rows = {"oldest": 3, "too large": 2, "fits": 1}
    suspended = [Waiting(name=name, stage=Stage.ENCODE, rows=count) for name, count in rows.items()]
    alone = [Waiting(name="larger than a batch", stage=Stage.ENCODE, rows=9)]

    assert next_names(policy, suspended) == ["oldest", "fits"]
    assert next_names(policy, alone) == ["larger than a batch"]


def test_what_fits_in_memory_bounds_a_batch() -> None:
    """In the module's own rows, of which guidance makes two for each row of a call."""
    policy: BatchPolicy[Waiting] = BatchPolicy(16)
    suspended = [
        Waiting(name=str(i), stage=Stage.DENOISE, module_rows=2, max_module_rows=5) for i in range(4)
    ]

    assert next_names(policy, suspended) == ["0", "1"]


def test_calls_are_begun_until_half_a_batch_more_than_one_is_on_its_way() -> None:
    """And not again before a denoising batch would not be full."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)

    begun = [wants_more(policy, calls(Stage.ENCODE, waiting)) for waiting in range(8)]
    full = wants_more(policy, calls(Stage.DENOISE, 4))
    not_full = wants_more(policy, calls(Stage.DENOISE, 3))

    assert begun == [True] * 6 + [False] * 2
    assert (full, not_full) == (False, True)


def test_a_few_sizes_are_kept_full_at_once_and_no_more() -> None:
    """Rows of ever new sizes would otherwise all be begun, and be in memory."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)
    sizes = [call for size in range(20) for call in calls(Stage.DENOISE, 1, str(size))]

    begun = [wants_more(policy, sizes[:waiting]) for waiting in range(20)]

    assert begun.index(False) == 4 // 2 + 4 * MAX_BATCH_KEYS


def test_nothing_is_begun_while_decoding_is_due() -> None:
    """Finished latents leave the device before new ones come."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)

    assert not wants_more(policy, calls(Stage.DECODE, 2))


def test_the_policy_needs_no_torch() -> None:
    """So that it can be read, and tested, as plain state."""
    code = "import sys, actors.engine.batching.batch_policy; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert not {"torch", "greenlet", "numpy"} & set(loaded.stdout.split())


def test_control_nets_run_before_a_denoising_batch_that_is_not_full() -> None:
    """Their rows fill it. A full one goes first, and no more calls begin while they wait."""
    policy: BatchPolicy[Waiting] = BatchPolicy(4)
    control = calls(Stage.CONTROL, 2)

    assert next_names(policy, [*calls(Stage.DENOISE, 3), *control]) == ["CONTROL0", "CONTROL1"]
    assert next_names(policy, [*calls(Stage.DENOISE, 4), *control])[0] == "DENOISE0"
    assert wants_more(policy, [*calls(Stage.DENOISE, 4), *control]) is False
