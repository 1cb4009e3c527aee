"""What is known of a checkpoint without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.systems.schedulers import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known of a checkpoint from its configuration files, without loading it."""

    checkpoint: str
    """Where the driver found it: a folder's whole path, a Hub repository, or demo:KIND."""
    revision: str
    """The Hub's commit, or a digest of a local folder's files: what the job's pictures depend on."""
    family: str
    """What it can do; see schemas/systems/system_table.py."""
    pipeline: str
    """The `_class_name` of its model_index.json."""
    scheduler: str
    """The scheduler class it is published with."""
    scheduler_settings: Mapping[str, Setting]
    """Of its scheduler_config.json what schemas/systems/schedulers.py knows."""
    max_noise_level: int
    """The greatest `noise_level` that an upscaler takes."""
    size_factor: int
    """Heights and widths are multiples of it: pixels per latent, and 8 at least."""
    height: int
    """Pixels, where a row names no size."""
    width: int
    """Pixels, where a row names no size."""
    weight_bytes: int
    """Size of its weight files on disk; 0 where it is not known before the download."""
    has_safety_checker: bool
    """Whether it comes with a model that looks for what not everybody should see."""
    max_clip_skip: int = 32
    """The greatest `clip_skip` that leaves a layer of its text encoders. The default is for older records."""
    vae_factor: int = 1
    """Pixels per latent. The default is for older records."""
