"""The facts about a checkpoint that its configuration files tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.systems.schedulers import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The facts about a checkpoint that its configuration files tell, without loading it."""

    checkpoint: str
    """The resolved checkpoint: the absolute path of a folder, a Hub repository, or demo:KIND."""
    revision: str
    """The Hub's commit, or a digest of a local folder's `files`. The job's images depend on it."""
    family: str
    """The family, which decides what the checkpoint can do; see schemas/systems/system_table.py."""
    pipeline: str
    """The `_class_name` of its model_index.json."""
    scheduler: str
    """The scheduler class that the checkpoint is published with."""
    scheduler_settings: Mapping[str, Setting]
    """Those settings of its scheduler_config.json that schemas/systems/schedulers.py knows."""
    max_noise_level: int
    """The greatest `noise_level` that an upscaler takes."""
    size_factor: int
    """The number of which heights and widths must be multiples: pixels per latent pixel, and at least 8."""
    height: int
    """The height in pixels of an image whose row sets none."""
    width: int
    """The width in pixels of an image whose row sets none."""
    weight_bytes: int
    """The size of the weight files that are loaded; 0 if it is not known before the download."""
    has_safety_checker: bool
    """Whether the checkpoint comes with a safety checker."""
    max_clip_skip: int = 32
    """The greatest `clip_skip` that leaves a layer of each text encoder. The default is for older records."""
    vae_factor: int = 1
    """Pixels per latent pixel, along one side. The default is for older records."""
    unet_shapes: int = 0
    """The most shapes of the UNet's blocks, for one shape of its input, that `batching.compile` compiles."""
    decoder_shapes: int = 0
    """The same of the VAE's decoder. The defaults are for older records."""
    files: Mapping[str, str] = field(default_factory=dict)
    """By name, the SHA-256 of each file of a local folder; empty for a commit of the Hub."""
