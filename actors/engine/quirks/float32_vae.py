"""VAEs and encoders that belong in float32 stay there, for all the calls that run on them side by side."""

from typing import Any

import torch

XL = "StableDiffusionXL"
UPCAST_BY = (XL, "StableDiffusionUpscale")
"""How the pipelines' names begin that heed a VAE's `force_upcast` (diffusers 0.42.1; Stable Diffusion's own
do not, though its VAEs have it set by default)."""


class _Steady:
    """What is mixed into the VAE's class."""

    def to(self, *_: Any, **__: Any) -> Any:
        """Stays as it is: pipelines cast the shared VAE up and, when they are done with it, down again."""
        return self

    def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().encode(x.float(), *args, **kwargs)  # type: ignore[misc]


class _Float32(_Steady):
    """For one of float16, which overflows."""

    dtype = torch.float16
    """As before, for pipelines to do all that they would do: they take latents that come out to float32."""

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().decode(z.float(), *args, **kwargs)  # type: ignore[misc]


class _Float32Encoder(_Steady):
    """For one of bfloat16, which XL's pipelines take to float32 for encoding, and not for decoding."""

    dtype = torch.bfloat16


def keep_in_float32(pipeline: Any) -> None:
    """Do it where the pipeline would for the time of a call: its weights are of half precision and it asks
    for more."""
    vae, name = pipeline.vae, type(pipeline).__name__
    if not vae.config.force_upcast or isinstance(vae, _Steady):
        return
    if vae.dtype == torch.float16 and name.startswith(UPCAST_BY):
        vae.to(torch.float32)
        _mix_in(_Float32, vae)
    elif vae.dtype == torch.bfloat16 and name.startswith(XL):
        for part in filter(None, (vae.encoder, vae.quant_conv)):
            part.to(torch.float32)
        _mix_in(_Float32Encoder, vae)


def _mix_in(steady: type[_Steady], vae: Any) -> None:
    """Into the module's class and not the module: a function in the module would keep it alive."""
    cls = type(vae)
    vae.__class__ = type(cls.__name__, (steady, cls), {"__module__": cls.__module__})
