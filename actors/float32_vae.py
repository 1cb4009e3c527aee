"""VAEs that overflow in float16 stay in float32, for all the calls that run on them side by side."""

from typing import Any

import torch

UPCAST_BY = (
    "StableDiffusionXL",
    "StableDiffusionUpscale",
)
"""How the pipelines' names begin that heed a VAE's `force_upcast` (diffusers 0.42.1; Stable Diffusion's own
do not, though its VAEs have it set by default)."""


class _Float32:
    """What is mixed into the VAE's class."""

    dtype = torch.float16
    """As before, for pipelines to do all that they would do: they take latents that come out to float32."""

    def to(self, *_: Any, **__: Any) -> Any:
        """Stays as it is: pipelines cast the shared VAE up and, when they are done with it, down again."""
        return self

    def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().encode(x.float(), *args, **kwargs)  # type: ignore[misc]

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().decode(z.float(), *args, **kwargs)  # type: ignore[misc]


def keep_in_float32(pipeline: Any) -> None:
    """Do it where the pipeline would for the time of a call: its weights are float16 and it asks for more."""
    vae = pipeline.vae
    asks = type(pipeline).__name__.startswith(UPCAST_BY) and vae.config.force_upcast
    if not asks or vae.dtype != torch.float16 or isinstance(vae, _Float32):
        return
    vae.to(torch.float32)
    cls = type(vae)
    # The module's class and not the module: a function in the module would keep it alive.
    vae.__class__ = type(cls.__name__, (_Float32, cls), {"__module__": cls.__module__})
