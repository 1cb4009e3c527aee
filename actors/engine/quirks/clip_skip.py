"""Makes `clip_skip` work in Stable Diffusion's pipelines (not XL's, which need nothing)."""

from types import SimpleNamespace
from typing import Any


def enable_clip_skip(text_encoder: Any) -> None:
    """Let diffusers find the encoder's last norm where it looks for it.

    diffusers 0.42.1 reads `text_encoder.text_model.final_layer_norm`; transformers 5.23 has no `text_model`
    in a CLIPTextModel any more, so that every call with `clip_skip` would raise AttributeError.
    """
    norm = getattr(text_encoder, "final_layer_norm", None)
    if norm is not None and not hasattr(text_encoder, "text_model"):
        # Not a module of the encoder's own: its weights would then be saved and counted twice.
        text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)
