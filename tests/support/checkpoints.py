"""Checkpoints for tests: they are built once per machine, and all test processes use the cached ones."""

import json
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from models.demo_cache import demo_folder
from schemas.errors import SpecError
from schemas.systems.model_card import ModelCard

NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
"""A complete safetensors file without tensors."""


@cache
def demo(kind: str) -> Path:
    """The folder of the `demo:KIND` checkpoint in the cache, where specs that name it find it too."""
    # Imported here because it imports torch, which paper checkpoints do not need.
    from demo.random_checkpoints import build_demo_model

    folder = demo_folder(kind)
    if not (folder / "model_index.json").is_file():
        # Not `demo_checkpoint`: it starts a process, which would import torch again for every kind.
        with suppress(SpecError):
            build_demo_model(folder, kind)
    assert (folder / "model_index.json").is_file()
    return folder


def sd_checkpoint() -> Path:
    """The folder of a small Stable Diffusion 1.5."""
    return demo("sd")


def sdxl_checkpoint() -> Path:
    """The folder of a small Stable Diffusion XL base."""
    return demo("sdxl")


def model_card(**changes: Any) -> ModelCard:
    """The model card of a Stable Diffusion of 512x512 whose checkpoint does not exist, with `changes`."""
    card = ModelCard(
        checkpoint="a/b",
        revision="r",
        family="sd",
        pipeline="StableDiffusionPipeline",
        scheduler="PNDMScheduler",
        scheduler_settings={},
        max_noise_level=350,
        size_factor=8,
        height=512,
        width=512,
        weight_bytes=0,
        has_safety_checker=False,
    )
    return replace(card, **changes)


def paper_checkpoint(
    folder: Path, *, pipeline: str = "StableDiffusionPipeline", channels: int = 4, sample_size: int = 64
) -> Path:
    """Write configuration files and empty weights to `folder`: a plan reads no more. This needs no torch."""
    files: dict[str, object] = {
        "model_index.json": {
            "_class_name": pipeline,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "safety_checker": [None, None],
        },
        "unet/config.json": {"in_channels": channels, "sample_size": sample_size},
        "vae/config.json": {"block_out_channels": [128, 256, 512, 512]},
        "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for part in ("unet", "vae"):
        (folder / part / "diffusion_pytorch_model.safetensors").write_bytes(NO_WEIGHTS)
    return folder
