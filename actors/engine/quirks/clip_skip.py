"""Makes `clip_skip` work in Stable Diffusion's pipelines; XL's work without this."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


def enable_clip_skip(text_encoder: Any) -> None:
    """Make the encoder's last norm available under the name that diffusers reads.

    diffusers 0.42.1 reads `text_encoder.text_model.final_layer_norm`. In transformers 5.23 a CLIPTextModel no
    longer has `text_model`, so every call with `clip_skip` would raise AttributeError.
    """
    norm = getattr(text_encoder, "final_layer_norm", None)
    if norm is not None and not hasattr(text_encoder, "text_model"):
        # Not a torch module, so that the norm's weights are not saved and counted twice.
        text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)


@contextmanager
def clip_skip_off(text_encoder: Any) -> Iterator[None]:
    """While the block runs, the encoder is as transformers made it.

    diffusers 0.42.1 tells from `text_model` which names a LoRA must have for the encoder's layers.
    """
    added = vars(text_encoder).pop("text_model", None) if text_encoder is not None else None
    try:
        yield
    finally:
        if added is not None:
            text_encoder.text_model = added
