"""A scheduler's timesteps stay where they can be read without waiting for a device."""

from diffusers import DDIMScheduler

from actors.engine.quirks.host_timesteps import keep_on_host


def test_timesteps_stay_on_the_host_whatever_device_a_pipeline_asks_for() -> None:
    """Shown on torch's device without memory: there is no GPU here."""
    scheduler, plain = DDIMScheduler(), DDIMScheduler()
    keep_on_host(scheduler)

    scheduler.set_timesteps(3, device="meta")
    plain.set_timesteps(3)

    assert scheduler.timesteps.device.type == "cpu"
    assert scheduler.timesteps.tolist() == plain.timesteps.tolist()
