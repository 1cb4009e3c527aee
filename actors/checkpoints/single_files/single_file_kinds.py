"""What a checkpoint in a single file is, and the configuration files that its folder would have.

The file's header tells it, and nothing else: its keys, shapes and types, and what trainers write beside them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.checkpoints.single_files.ldm_configs import (
    CLIP,
    HEADS_OF_1,
    OPEN_CLIP,
    REFINER_OPEN_CLIP,
    UNET,
    VAE,
    XL_CLIP,
    XL_OPEN_CLIP,
    Config,
    Tensors,
    clip_config,
    cross_attention_dim,
    in_channels,
    open_clip_config,
    size_aware_config,
    unet_config,
    vae_config,
)
from actors.checkpoints.single_files.safetensors_headers import Header, refuse_whole_numbers

NOT_CHECKPOINTS: Mapping[str, tuple[str, ...]] = {
    "a LoRA or another adapter, not a checkpoint": ("lora_", ".lora_", ".lora.", ".hada_", ".lokr_"),
    "a ControlNet, not a checkpoint": ("control_model.", "controlnet_cond_embedding.", "input_hint_block."),
    "an IP-Adapter, not a checkpoint": ("ip_adapter.", "image_proj."),
    "a motion module, not a checkpoint": ("motion_modules.",),
    "a checkpoint of Stable Diffusion 3, which darkroom does not run": ("joint_blocks.",),
    "a checkpoint of Flux, which darkroom does not run": ("double_blocks.", "single_blocks."),
    "a checkpoint of Playground 2.5, which darkroom does not run": ("edm_mean",),
    "a UNet or VAE as diffusers saves it; name its folder under `components`": ("down_blocks.",),
    "a VAE, not a checkpoint": ("encoder.mid.", "decoder.mid."),
    "a textual inversion, not a checkpoint": ("emb_params", "clip_l", "string_to_param"),
}
"""Kinds of files that are not checkpoints of Stable Diffusion, and the parts of keys that tell them."""

_SCHEDULE: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "prediction_type": "epsilon",
}
"""The settings that the published schedulers have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of checkpoint that is published as a single file."""

    name: str
    text_encoders: Mapping[str, str]
    """By component, what the keys of its text encoders begin with."""
    text_width: int
    """The width of the texts that the published UNet reads."""
    scheduler: str
    sample_size: int
    """The side of the latents that an image has if its row sets no size."""
    scaling_factor: float = 0.18215
    heads: int | None = None
    num_time_ids: int = 0
    """The sizes and scores that the UNet is told; 0: none."""
    settings: Config = field(default_factory=dict)
    """What is special in model_index.json."""

    @property
    def is_xl(self) -> bool:
        return self.num_time_ids > 0


KINDS = (
    Kind(
        name="Stable Diffusion 1.x",
        text_encoders={"text_encoder": CLIP},
        text_width=768,
        scheduler="PNDMScheduler",
        sample_size=64,
        heads=HEADS_OF_1,
    ),
    Kind(
        name="Stable Diffusion 2.x",
        text_encoders={"text_encoder": OPEN_CLIP},
        text_width=1024,
        scheduler="DDIMScheduler",
        sample_size=96,
    ),
    Kind(
        name="Stable Diffusion XL",
        text_encoders={"text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP},
        text_width=2048,
        scheduler="EulerDiscreteScheduler",
        sample_size=128,
        scaling_factor=0.13025,
        num_time_ids=6,
        settings={"force_zeros_for_empty_prompt": True},
    ),
    Kind(
        name="Stable Diffusion XL's refiner",
        text_encoders={"text_encoder_2": REFINER_OPEN_CLIP},
        text_width=1280,
        scheduler="EulerDiscreteScheduler",
        sample_size=128,
        scaling_factor=0.13025,
        num_time_ids=5,
        settings={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
    ),
)
"""The kinds, of which a UNet of 9 channels is the one for inpainting."""
SD_2 = KINDS[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """What a header tells of a checkpoint."""

    kind: Kind
    dtype: str
    """The torch type that keeps every weight as it is: float32, float16 or bfloat16."""
    configs: Mapping[str, Config]
    """Configuration files by name. Those of the tokenizers are not among them."""
    size_bytes: Mapping[str, int]
    """The size of each component's weights. Components that the file does not have are not among them."""

    @property
    def tokenizers(self) -> dict[str, str]:
        """By component, the token that fills up short texts: OpenAI's CLIP and OpenCLIP differ in it."""
        texts = self.kind.text_encoders.items()
        return {
            name.replace("text_encoder", "tokenizer"): "<|endoftext|>" if prefix in (CLIP, XL_CLIP) else "!"
            for name, prefix in texts
        }


def recognise(header: Header) -> Recognised:
    """What the header describes; ValueError, with the reason, if darkroom does not run such a file."""
    tensors = header.tensors
    if f"{UNET}input_blocks.0.0.weight" not in tensors:
        raise ValueError(_what_it_is(tensors))
    if "edm_mean" in tensors:
        raise ValueError(f"it is {_named(tensors, 'edm_mean')}")
    channels = in_channels(tensors)
    kind = _kind(tensors)
    if channels not in (4, 9) or (not kind.is_xl and f"{UNET}label_emb.0.0.weight" in tensors):
        raise ValueError(
            f"it is a special {kind.name}, whose UNet takes {channels} channels or labels; of single files, "
            "darkroom runs those of 4 channels, and of 9 for inpainting. Other systems run from a folder"
        )
    prefixes = {"unet": UNET, "vae": VAE, **kind.text_encoders}
    present = {name for name, prefix in prefixes.items() if any(key.startswith(prefix) for key in tensors)}
    used = [key for key in tensors if key.startswith(tuple(prefixes.values()))]
    refuse_whole_numbers({key: tensors[key] for key in used})
    return Recognised(
        kind=kind,
        dtype=_dtype(tensors[key].dtype for key in used),
        configs=_configs(header, kind, present, is_inpaint=channels == 9),
        size_bytes={
            name: sum(tensors[key].size_bytes for key in used if key.startswith(prefixes[name]))
            for name in present
        },
    )


def _what_it_is(tensors: Tensors) -> str:
    """Why a file without a UNet of Stable Diffusion is not a checkpoint."""
    for what, parts in NOT_CHECKPOINTS.items():
        if any(part in key for key in tensors for part in parts):
            return f"it is {what}"
    some = ", ".join(f"{key:.60}" for key in [*tensors][:3])
    return f"it has no UNet of Stable Diffusion; its first tensors are {some or 'none'}"


def _named(tensors: Tensors, part: str) -> str:
    return next(what for what, parts in NOT_CHECKPOINTS.items() if part in parts)


def _kind(tensors: Tensors) -> Kind:
    """The kind whose text encoders the file has, or, if it has none, whose texts its UNet reads."""
    for kind in KINDS[::-1]:
        last = [*kind.text_encoders.values()][-1]
        tokens = "embeddings.token_embedding.weight" if last in (CLIP, XL_CLIP) else "token_embedding.weight"
        # The prefix of XL's first encoder begins with that of the refiner's, so the keys are compared whole.
        if f"{last}{tokens}" in tensors:
            return kind
    width = cross_attention_dim(tensors)
    for kind in KINDS:
        if kind.text_width == width:
            return kind
    raise ValueError(
        f"it has no text encoder, and a UNet that reads texts {width} wide, as no published one does"
    )


def _dtype(dtypes: Iterable[str]) -> str:
    """The torch type that keeps the weights of these types as they are."""
    floats = {dtype for dtype in dtypes if dtype.startswith(("F", "BF")) and dtype != "F8_E8M0"}
    if floats <= {"F16", "F8_E4M3", "F8_E5M2"}:
        return "float16"
    return "bfloat16" if floats == {"BF16"} else "float32"


def _configs(header: Header, kind: Kind, present: Iterable[str], *, is_inpaint: bool) -> dict[str, Config]:
    tensors, configs = header.tensors, dict[str, Config]()
    for name, prefix in kind.text_encoders.items():
        if name in present:
            build = clip_config if prefix in (CLIP, XL_CLIP) else open_clip_config
            configs[f"{name}/config.json"] = build(tensors, prefix)
    if "vae" in present:
        configs["vae/config.json"] = vae_config(tensors, kind.scaling_factor)
    unet = unet_config(tensors, heads=kind.heads)
    if kind.is_xl:
        pooled = configs.get("text_encoder_2/config.json", {}).get("projection_dim", 1280)
        unet |= size_aware_config(tensors, pooled_width=pooled, num_time_ids=kind.num_time_ids)
    scheduler, sample_size = _scheduler(header, kind, is_inpaint=is_inpaint)
    configs["unet/config.json"] = unet | {"sample_size": sample_size}
    configs["scheduler/scheduler_config.json"] = scheduler
    configs["model_index.json"] = _index(kind, str(scheduler["_class_name"]), is_inpaint=is_inpaint)
    return configs


def _scheduler(header: Header, kind: Kind, *, is_inpaint: bool) -> tuple[Config, int]:
    """(configuration of the scheduler, side of the latents).

    Trainers mark a UNet that predicts velocities, and one that was trained down to a signal-to-noise ratio of
    zero. Nothing else tells Stable Diffusion 2's UNet of 768 pixels, which predicts velocities, from that of
    512. Where no mark is, it is taken for the former, as diffusers 0.42.1 takes it.
    """
    is_inpaint_2 = kind is SD_2 and is_inpaint
    marked = header.metadata.get("modelspec.prediction_type")
    is_velocity = "v_pred" in header.tensors or marked == "v"
    if kind is SD_2 and marked != "epsilon" and not is_inpaint:
        is_velocity = True
    is_zero_snr = "ztsnr" in header.tensors
    # PNDM knows no such schedule, and the published models for inpainting have DDIM.
    needs_ddim = kind.scheduler == "PNDMScheduler" and (is_zero_snr or is_inpaint)
    config = {
        "_class_name": "DDIMScheduler" if needs_ddim else kind.scheduler,
        **_SCHEDULE,
        "prediction_type": "v_prediction" if is_velocity else "epsilon",
        # The others leave it out: a scheduler that is built from theirs has its own default.
        **({"timestep_spacing": "leading"} if kind.is_xl else {}),
        **({"rescale_betas_zero_snr": True} if is_zero_snr else {}),
    }
    is_small_2 = kind is SD_2 and (is_inpaint_2 or not is_velocity)
    return config, 64 if is_small_2 else kind.sample_size


def _index(kind: Kind, scheduler: str, *, is_inpaint: bool) -> Config:
    """The model_index.json, which names all components, also those that the file does not have."""
    index: dict[str, Any] = {"_class_name": _pipeline(kind, is_inpaint=is_inpaint), **kind.settings}
    encoders = ("text_encoder", "text_encoder_2") if kind.is_xl else ("text_encoder",)
    for name in encoders:
        has_it = name in kind.text_encoders
        cls = "CLIPTextModelWithProjection" if name == "text_encoder_2" else "CLIPTextModel"
        index[name] = ["transformers", cls] if has_it else [None, None]
        tokenizer = name.replace("text_encoder", "tokenizer")
        index[tokenizer] = ["transformers", "CLIPTokenizer"] if has_it else [None, None]
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    index["scheduler"] = ["diffusers", scheduler]
    index["feature_extractor"] = index["image_encoder"] = [None, None]
    if not kind.is_xl:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    return index


def _pipeline(kind: Kind, *, is_inpaint: bool) -> str:
    if kind is KINDS[3]:
        return "StableDiffusionXLImg2ImgPipeline"
    return f"StableDiffusion{'XL' if kind.is_xl else ''}{'Inpaint' if is_inpaint else ''}Pipeline"
