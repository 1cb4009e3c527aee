"""Copies to a device that nobody waits for, shown on torch's device without memory and on a pretended GPU."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler

from actors.engine.quirks.async_transfers import on_host, transfers_in_background
from actors.engine.quirks.host_timesteps import keep_on_host
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu

META = torch.device("meta")
TOKENS = torch.arange(6)


@pytest.mark.parametrize(
    "move",
    [
        lambda tensor: tensor.to(META),
        lambda tensor: tensor.to("meta", torch.int32),
        lambda tensor: tensor.to(device="meta", dtype=torch.int32),
        lambda tensor: tensor.to(torch.empty(1, device=META)),
    ],
)
def test_tokens_are_known_without_asking_the_device(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A tensor on the device remembers the one it was copied from: this device could not even be asked."""
    with transfers_in_background(META):
        moved = move(TOKENS)

        assert moved.device == META
        assert on_host(moved) is TOKENS


def test_other_conversions_are_torchs_own() -> None:
    """To another dtype, from the device, and anything once the run is over."""
    plain = torch.Tensor.to

    with transfers_in_background(META):
        cast = TOKENS.to(torch.float32)
        twice = TOKENS.to(META).to(META, torch.int32)

    assert torch.equal(cast, TOKENS.float())
    assert not hasattr(cast, "on_host")
    assert not hasattr(twice, "on_host")
    assert torch.Tensor.to is plain


@pytest.mark.parametrize("source", [torch.arange(6).reshape(2, 3).T, torch.ones(1).expand(4)])
def test_a_copy_to_a_gpu_starts_from_pinned_memory(source: torch.Tensor) -> None:
    """Of a tensor that was expanded too, which torch does not pin: timesteps are, for the rows of a call."""
    with pretended_gpu() as gpu, torch.inference_mode():
        with transfers_in_background(DEVICE):
            moved = source.to(DEVICE)

        assert [event.kind for event in gpu.log.events] == [Kind.COPY]
        assert moved.tolist() == source.tolist()


def test_it_ends_with_an_error_too() -> None:
    """`Tensor.to` is everybody's."""
    plain = torch.Tensor.to

    with pytest.raises(ValueError, match="in the midst"), transfers_in_background(META):
        raise ValueError("in the midst")

    assert torch.Tensor.to is plain


def test_on_a_cpu_nothing_is_different() -> None:
    """Nothing is copied there."""
    plain = torch.Tensor.to

    with transfers_in_background(torch.device("cpu")):
        assert torch.Tensor.to is plain

    assert torch.equal(on_host(TOKENS), TOKENS)


def test_timesteps_stay_on_the_host_whatever_device_a_pipeline_asks_for() -> None:
    """Shown on torch's device without memory: there is no GPU here."""
    scheduler, plain = DDIMScheduler(), DDIMScheduler()
    keep_on_host(scheduler)

    scheduler.set_timesteps(3, device="meta")
    plain.set_timesteps(3)

    assert scheduler.timesteps.device.type == "cpu"
    assert scheduler.timesteps.tolist() == plain.timesteps.tolist()
