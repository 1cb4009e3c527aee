"""Keeps VAEs, or their encoders, in float32 where diffusers casts them to it and back in each call.

Calls run side by side on one VAE: a cast by one call would change it for the others.
"""

from typing import Any

import torch

from schemas.systems.model_card import UPCASTING_PIPELINES

XL = "StableDiffusionXL"


class _FixedDtype:
    """The mixin for a VAE whose dtype must not change; it encodes in float32."""

    def to(self, *_: Any, **__: Any) -> Any:
        """Do nothing: pipelines cast the shared VAE to float32 and, after use, back."""
        return self

    def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().encode(x.float(), *args, **kwargs)  # type: ignore[misc]


class _Float32(_FixedDtype):
    """The mixin for a float16 VAE, which overflows: it also decodes in float32."""

    dtype = torch.float16
    """The dtype that pipelines see, as before the cast: they then cast their latents to float32 as usual."""

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().decode(z.float(), *args, **kwargs)  # type: ignore[misc]


class _Float32Encoder(_FixedDtype):
    """The mixin for a bfloat16 VAE, which XL's pipelines cast to float32 to encode, but not to decode."""

    dtype = torch.bfloat16

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Beside a UNet in float16, latents have that dtype.
        return super().decode(z.to(self.dtype), *args, **kwargs)  # type: ignore[misc]


def keep_in_float32(pipeline: Any, vae_dtype: str = "auto") -> None:
    """Cast the pipeline's VAE, or its encoder, to float32 if the pipeline would do so for each call.

    That is the case if the weights have half precision and the configuration sets `force_upcast`. With
    `vae_dtype` bfloat16, a VAE whose weights are float16 decodes in bfloat16.
    """
    vae, name = pipeline.vae, type(pipeline).__name__
    if not vae.config.force_upcast or isinstance(vae, _FixedDtype):
        return
    upcasts = vae.dtype == torch.float16 and name.startswith(UPCASTING_PIPELINES)
    if upcasts and vae_dtype == "auto":
        vae.to(torch.float32)
        _mix_in(_Float32, vae)
    elif upcasts or (vae.dtype == torch.bfloat16 and name.startswith(XL)):
        vae.to(torch.bfloat16)
        for part in filter(None, (vae.encoder, vae.quant_conv)):
            part.to(torch.float32)
        _mix_in(_Float32Encoder, vae)


def _mix_in(mixin: type[_FixedDtype], vae: Any) -> None:
    """Change the VAE's class. A function set on the VAE itself would keep it alive."""
    cls = type(vae)
    vae.__class__ = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})
