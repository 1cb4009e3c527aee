"""The facts about a checkpoint that its configuration files tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.systems.schedulers import Setting

UPCASTING_PIPELINES = ("StableDiffusionXL", "StableDiffusionUpscale")
"""The beginnings of the names of pipelines that obey a VAE's `force_upcast` (diffusers 0.42.1).

Stable Diffusion's own pipelines do not, although its VAEs have it set by default.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """One adapter's file of safetensors, as the plan has found it."""

    name: str
    """The adapter's name in the spec."""
    path: str
    """The absolute path of the file, its URI on S3, the Hub's repository, or demo:KIND."""
    weight_name: str | None = None
    """The file's name in the Hub's repository; None elsewhere."""
    subfolder: str | None = None
    """The folder of the file in the Hub's repository, if it is in one."""
    revision: str | None = None
    """The Hub's commit; None elsewhere."""
    sha256: str
    """The hash of the file's content. The job's images depend on it."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedVectors:
    """The vectors of a token for one text encoder, as the header of their file describes them."""

    tensor: str
    """The name of their tensor in the file."""
    num_vectors: int
    """The number of vectors, for each of which a prompt has a token."""
    width: int
    """The numbers in a vector, as many as the encoder's embeddings have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile(AdapterFile):
    """The file of a token that was learned by textual inversion. Its name is the token."""

    vectors: Mapping[str, LearnedVectors]
    """What each text encoder gets, by the encoder's name, such as `text_encoder`."""

    @property
    def num_vectors(self) -> int:
        """The number of vectors; the greatest one where encoders get different numbers."""
        return max(each.num_vectors for each in self.vectors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentCard:
    """Where a component is that the spec names by itself, and which."""

    path: str
    """The absolute path of a folder, or a Hub repository."""
    revision: str
    """The Hub's commit, or a digest of a local folder's `files`."""
    subfolder: str
    """The component's folder in it; empty if it is the whole."""
    files: Mapping[str, str] = field(default_factory=dict)
    """By name, the SHA-256 of each file of a local folder; empty for a commit of the Hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpAdapterCard:
    """Where an IP-Adapter and its image encoder are, and what their files tell about them."""

    file: AdapterFile
    image_encoder: ComponentCard

    @property
    def size_bytes(self) -> int:
        """The size of the adapter, without its image encoder, which others may share."""
        return self.file.size_bytes

    @property
    def encoder_key(self) -> tuple[str, str, str]:
        """Equal for adapters that have the same image encoder."""
        encoder = self.image_encoder
        return encoder.path, encoder.subfolder, encoder.revision


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetCard:
    """Where a ControlNet is, and what its files tell about it."""

    path: str
    """The absolute path of a folder, a Hub repository, or demo:KIND."""
    revision: str
    """The Hub's commit, or a digest of a local folder's files."""
    subfolder: str
    """Its folder in it; empty if it is the whole."""
    variant: str | None
    """The variant of its weight files."""
    sha256: str
    """The hash of its file of weights; of several, the hash of their hashes."""
    size_bytes: int
    """The size of its weights."""
    num_modes: int = 0
    """The number of kinds of control images that a union takes; 0 for a plain ControlNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The facts about a checkpoint that its configuration files tell, without loading it."""

    checkpoint: str
    """The resolved checkpoint: the absolute path of a folder or of a single file, an S3 URI, a Hub repository
    or a file in one, or demo:KIND."""
    revision: str
    """The Hub's commit, or a digest of a local folder's `files`, or of the ETag on S3. The job's images
    depend on it."""
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
    upcasts_vae: bool = False
    """Whether its VAE stays in float32 beside a float16 UNet. The default is for older records."""
    unet_shapes: int = 0
    """The most shapes of the UNet's blocks, for one shape of its input, that `batching.compile` compiles."""
    decoder_shapes: int = 0
    """The same of the VAE's decoder. The defaults are for older records."""
    files: Mapping[str, str] = field(default_factory=dict)
    """By name, the SHA-256 of each file of a local folder, or of a single file; empty if it is elsewhere."""
    components: Mapping[str, ComponentCard] = field(default_factory=dict)
    """By name, the components that the spec names by themselves."""
    loras: Mapping[str, AdapterFile] = field(default_factory=dict)
    """The model's LoRAs by name, in the order of the spec."""
    controlnets: Mapping[str, ControlNetCard] = field(default_factory=dict)
    """The model's ControlNets by name, in the order of the spec."""
    embeddings: Mapping[str, EmbeddingFile] = field(default_factory=dict)
    """The model's learned tokens, in the order of the spec, which gives them their numbers."""
    ip_adapters: Mapping[str, IpAdapterCard] = field(default_factory=dict)
    """The model's IP-Adapters by name, in the order of the spec."""

    @property
    def adapter_bytes(self) -> dict[tuple[str, str], int]:
        """The size of each adapter's weights by kind, such as `LoRA`, and name."""
        kinds: Mapping[str, Mapping[str, AdapterFile | ControlNetCard | IpAdapterCard]] = {
            "LoRA": self.loras,
            "ControlNet": self.controlnets,
            "embedding": self.embeddings,
            "IP-Adapter": self.ip_adapters,
        }
        return {
            (kind, name): each.size_bytes for kind, cards in kinds.items() for name, each in cards.items()
        }
