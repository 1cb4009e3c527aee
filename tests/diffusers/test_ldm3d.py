"""Depth as LDM3D draws it keeps its 16 bits, and its upscaler is the published one."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionLDM3DPipeline,
)
from diffusers.image_processor import VaeImageProcessorLDM3D
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import CLIPImageProcessor

from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from actors.engine.quirks.ldm3d_upscale import StableDiffusionUpscaleLDM3DPipeline
from models.demo_cache import demo_checkpoint

KINDS = ["ldm3d", "ldm3d-4c"]
SIZE = (48, 64)
PROMPTS = ["a red boat", "snow at night", "an old clock"]


@cache
def loaded(kind: str) -> Any:
    upscaler = kind == "ldm3d-upscale"
    cls = StableDiffusionUpscaleLDM3DPipeline if upscaler else StableDiffusionLDM3DPipeline
    return quiet(cls.from_pretrained(demo_checkpoint(kind), use_safetensors=True))


def quiet(pipeline: DiffusionPipeline) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing(kind: str) -> Any:
    """The LDM3D pipeline as darkroom runs it, on components that tests share."""
    pipeline = quiet(StableDiffusionLDM3DPipeline(**loaded(kind).components, requires_safety_checker=False))
    pipeline.image_processor = LDM3DImageProcessor()
    return pipeline


def upscaling(**components: Any) -> Any:
    return quiet(StableDiffusionUpscaleLDM3DPipeline(**loaded("ldm3d-upscale").components | components))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw(pipeline: Any, output_type: str) -> Any:
    return pipeline(
        PROMPTS[:2],
        num_inference_steps=2,
        height=64,
        width=64,
        generator=seeded(3, 4),
        output_type=output_type,
    )


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def depth_map(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A slope, rough enough that its low byte is busy."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 60_000, size[0])[None] + rng.uniform(0, 5_000, (size[1], size[0]))
    return Image.fromarray(slope.astype(np.uint16))


def upscale(pipeline: Any, rows: list[int], **changes: Any) -> Any:
    """Some of three rows; row n has seed n."""
    arguments = {
        "prompt": [PROMPTS[row] for row in rows],
        "rgb": [picture(row) for row in rows],
        "depth": [depth_map(row) for row in rows],
        "generator": seeded(*rows),
        "num_inference_steps": 2,
        "target_res": SIZE,
        "output_type": "pt",
    }
    return pipeline(**arguments | changes)


def decoded_by_hand(pipeline: Any) -> np.ndarray:
    """(N, height, width, 4 or 6) in [0, 1] of the pipeline's latents."""
    latents = draw(pipeline, "latent").rgb
    with torch.no_grad():
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_arrays_and_images_agree(kind: str) -> None:
    """One image and one depth map for each row, whatever the output type."""
    pipeline = drawing(kind)

    tensors, arrays, images = (draw(pipeline, output_type) for output_type in ("pt", "np", "pil"))

    assert tensors.rgb.shape == (2, 3, 64, 64)
    assert tensors.depth.shape == (2, 64, 64)
    assert tensors.rgb.dtype == tensors.depth.dtype == torch.float32
    np.testing.assert_array_equal(tensors.rgb.permute(0, 2, 3, 1), arrays.rgb)
    np.testing.assert_array_equal(tensors.depth, arrays.depth)
    assert [image.mode for image in images.rgb + images.depth] == ["RGB"] * 2 + ["I;16"] * 2
    np.testing.assert_array_equal(np.stack(images.rgb), (arrays.rgb * 255).round())
    np.testing.assert_array_equal(np.stack(images.depth), (arrays.depth * 65535).round())


@pytest.mark.parametrize("kind", KINDS)
def test_what_diffusers_own_processor_gets_right_is_the_same(kind: str) -> None:
    """Its RGB arrays, and a 4-channel VAE's depth."""
    pipeline = drawing(kind)
    ours = draw(pipeline, "np")
    pipeline.image_processor = VaeImageProcessorLDM3D(vae_scale_factor=pipeline.vae_scale_factor)

    theirs = draw(pipeline, "np")

    np.testing.assert_array_equal(ours.rgb, theirs.rgb)
    if kind == "ldm3d-4c":
        np.testing.assert_array_equal(ours.depth, theirs.depth[..., 0])


def test_six_channels_hold_the_depth_in_two_bytes() -> None:
    """The high one in the fifth channel, the low one in the sixth."""
    pipeline = drawing("ldm3d")
    channels = (decoded_by_hand(pipeline) * 255).round().astype(np.uint16)

    depth = np.stack(draw(pipeline, "pil").depth)

    np.testing.assert_array_equal(depth, channels[..., 4] * 256 + channels[..., 5])


def test_every_pair_of_bytes_survives() -> None:
    """65,536 depths go in, as two channels in [-1, 1], and come out."""
    high, low = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    decoded = torch.zeros(1, 6, 256, 256)
    decoded[0, 4:] = torch.stack([high, low]) / 255 * 2 - 1

    _, depth = LDM3DImageProcessor().postprocess(decoded, "pt")
    _, images = LDM3DImageProcessor().postprocess(decoded, "pil")

    levels = np.arange(65_536).reshape(256, 256)
    np.testing.assert_array_equal((depth[0] * 65_535).round(), levels)
    np.testing.assert_array_equal(images[0], levels)


@pytest.mark.parametrize("kind", [*KINDS, "ldm3d-upscale"])
def test_depth_has_more_levels_than_a_byte_holds(kind: str) -> None:
    """It is neither flat nor 8-bit."""
    output = upscale(loaded(kind), [0, 1]) if kind == "ldm3d-upscale" else draw(drawing(kind), "pt")

    for depth in output.depth:
        levels = (depth * 65_535).round()
        assert len(levels.unique()) > 256
        assert levels.max() - levels.min() > 2_000


class FlagsTheSecond:
    """A safety checker that blackens one row, as diffusers' does."""

    def __call__(self, clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        assert clip_input.shape[:2] == (len(images), 3)
        images[1] = 0
        return images, [number == 1 for number in range(len(images))]


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
@pytest.mark.parametrize("kind", [*KINDS, "ldm3d-upscale"])
def test_a_safety_checker_blackens_only_the_row_that_it_flags(kind: str, output_type: str) -> None:
    """Image and depth; the other row stays as it is without a checker."""

    def made(pipeline: Any) -> Any:
        if kind == "ldm3d-upscale":
            output = upscale(pipeline, [0, 1], output_type=output_type)
            return output.images, output.depth, output.nsfw_content_detected
        output = draw(pipeline, output_type)
        return output.rgb, output.depth, output.nsfw_content_detected

    pipeline = upscaling() if kind == "ldm3d-upscale" else drawing(kind)
    rgb, depth, flags = made(pipeline)
    pipeline.register_modules(safety_checker=FlagsTheSecond(), feature_extractor=CLIPImageProcessor())
    checked_rgb, checked_depth, checked_flags = made(pipeline)

    assert flags is None
    assert checked_flags == [False, True]
    np.testing.assert_array_equal(checked_rgb[0], rgb[0])
    np.testing.assert_array_equal(checked_depth[0], depth[0])
    assert not np.asarray(checked_rgb[1]).any()
    assert not np.asarray(checked_depth[1]).any()


@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_half_precision_gives_whole_depths(output_type: str) -> None:
    """float16 could not hold a 16-bit depth."""
    decoded = torch.linspace(-1, 1, 6 * 8 * 8).reshape(1, 6, 8, 8)

    halves = LDM3DImageProcessor().postprocess(decoded.half(), output_type)
    bytes_of_halves = LDM3DImageProcessor().postprocess(decoded.half().float(), output_type)

    for half, whole in zip(halves, bytes_of_halves, strict=True):
        np.testing.assert_array_equal(half, whole)


def test_an_unknown_output_type_is_refused_with_those_there_are() -> None:
    """diffusers would fall back to arrays."""
    with pytest.raises(ValueError, match="pt, np, pil or latent, not 'numpy'"):
        LDM3DImageProcessor().postprocess(torch.zeros(1, 4, 8, 8), "numpy")


PUBLISHED_INDEX = {
    "_class_name": "StableDiffusionUpscaleLDM3DPipeline",
    "_diffusers_version": "0.9.0.dev0",
    "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    "max_noise_level": 350,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""As Intel/ldm3d-sr has it, but for the scheduler: it does not name the optional components at all."""


@pytest.mark.parametrize("index", [None, PUBLISHED_INDEX], ids=["as saved", "as published"])
def test_a_saved_upscaler_loads_as_it_was(index: dict[str, Any] | None, tmp_path: Path) -> None:
    """By the class alone: no code comes along."""
    upscaling().save_pretrained(tmp_path, safe_serialization=True)
    saved_index = json.loads((tmp_path / "model_index.json").read_text())
    if index:
        (tmp_path / "model_index.json").write_text(json.dumps(index))

    pipeline = StableDiffusionUpscaleLDM3DPipeline.from_pretrained(tmp_path, use_safetensors=True)

    assert saved_index.keys() - {"_class_name", "_diffusers_version"} == {
        *PUBLISHED_INDEX.keys() - {"_class_name", "_diffusers_version"},
        *("safety_checker", "feature_extractor", "watermarker"),
    }
    assert saved_index["_class_name"] == "StableDiffusionUpscaleLDM3DPipeline"
    assert not list(tmp_path.rglob("*.py"))
    assert pipeline.config.max_noise_level == 350
    again, before = upscale(quiet(pipeline), [0]), upscale(upscaling(), [0])
    assert torch.equal(again.images, before.images)
    assert torch.equal(again.depth, before.depth)


def low_res_by_hand(row: int) -> torch.Tensor:
    """(1, 4, height, width) in [-1, 1], by the image processor of the published pipeline."""
    processor = VaeImageProcessorLDM3D(vae_scale_factor=8, resample="bilinear")
    rgb, depth = processor.preprocess([picture(row)], [depth_map(row)], target_res=SIZE)
    return torch.cat([rgb, depth], dim=1)


@torch.no_grad()
def upscaled_by_hand(pipeline: Any, row: int, guidance_scale: float, **step: Any) -> np.ndarray:
    """One row by the published recipe, (height, width, 4) in [0, 1]."""
    generator = seeded(row)[0]
    if "eta" in step:
        step["generator"] = generator
    tokens = pipeline.tokenizer(["", PROMPTS[row]], padding="max_length", max_length=77, return_tensors="pt")
    unguided, guided = pipeline.text_encoder(tokens.input_ids)[0].split(1)
    factor = pipeline.vae.config.scaling_factor
    low_res = pipeline.vae.encode(low_res_by_hand(row)).latent_dist.sample(generator) * factor
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(2)
    latents = randn_tensor(low_res.shape, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        seen = torch.cat([scheduler.scale_model_input(latents, timestep), low_res], dim=1)
        plain, drawn = (
            pipeline.unet(seen, timestep, text, class_labels=torch.tensor([20])).sample
            for text in (unguided, guided)
        )
        noise = plain + guidance_scale * (drawn - plain)
        latents = scheduler.step(noise, timestep, latents, **step).prev_sample
    pixels = pipeline.vae.decode(latents / factor).sample[0]
    return (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize(
    ("scheduler", "step"),
    [(PNDMScheduler, {}), (EulerDiscreteScheduler, {}), (DDIMScheduler, {"eta": 0.5})],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_upscaled_row_is_what_the_recipe_gives(
    scheduler: Any, step: dict[str, float], guidance_scale: float
) -> None:
    """The published loop, written out, with the same seed."""
    pipeline = upscaling(scheduler=scheduler.from_config(loaded("ldm3d-upscale").scheduler.config))
    expected = upscaled_by_hand(pipeline, 1, guidance_scale, **step)

    output = upscale(pipeline, [1], guidance_scale=guidance_scale, **step)

    ours = torch.cat([output.images[0], output.depth]).permute(1, 2, 0)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_an_upscaled_row_does_not_depend_on_its_company() -> None:
    """Alone or as one of three; PNDM's own state, too, starts afresh."""
    pipeline = upscaling()

    together = upscale(pipeline, [0, 1, 2])

    assert together.images.shape == (3, 3, *SIZE)
    assert together.depth.shape == (3, *SIZE)
    for row in range(3):
        alone = upscale(pipeline, [row])
        np.testing.assert_allclose(together.images[row], alone.images[0], atol=1e-5)
        np.testing.assert_allclose(together.depth[row], alone.depth[0], atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ["a stormy sea"]},
        {"negative_prompt": ["blurry"]},
        {"rgb": [picture(9)]},
        {"depth": [depth_map(9)]},
        {"generator": seeded(9)},
        {"noise_level": 300},
        {"guidance_scale": 2.0},
        {"clip_skip": 1},
        {"num_inference_steps": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_upscaled_image(change: dict[str, Any]) -> None:
    """None is taken and forgotten."""
    pipeline = upscaling()

    before, after = upscale(pipeline, [0]), upscale(pipeline, [0], **change)

    assert (before.images - after.images).abs().max() > 1e-4


def test_depth_maps_count_for_their_range_not_for_their_bits() -> None:
    """An 8-bit map, its 16-bit copy and the 32-bit copy that older Pillows read are the same depth."""
    levels = np.asarray(depth_map()) >> 8
    maps = [
        Image.fromarray(levels.astype(np.uint8)),
        Image.merge("RGB", [Image.fromarray(levels.astype(np.uint8))] * 3),
        Image.fromarray((levels * 257).astype(np.uint16)),
        Image.fromarray((levels * 257).astype(np.int32)),
    ]
    pipeline = upscaling()

    first, *others = (upscale(pipeline, [0], depth=[depth]) for depth in maps)

    assert [depth.mode for depth in maps] == ["L", "RGB", "I;16", "I"]
    for other in others:
        np.testing.assert_allclose(first.images, other.images, atol=1e-5)


def test_the_published_examples_calls_work() -> None:
    """One prompt, one image, and a list for the size; PIL images come back."""
    output = upscaling()(
        prompt="high quality high resolution uhd 4k image",
        rgb=picture(),
        depth=depth_map().convert("L"),
        num_inference_steps=2,
        target_res=[48, 64],
        generator=torch.manual_seed(0),
    )

    assert [(image.mode, image.size) for image in output.images] == [("RGB", (64, 48))]
    assert [(image.mode, image.size) for image in output.depth] == [("I;16", (64, 48))]


def test_a_watermarker_marks_the_images() -> None:
    """PIL images only, as in the published pipeline."""

    class Inverts:
        def apply_watermark(self, images: list[Image.Image]) -> list[Image.Image]:
            return [Image.fromarray(255 - np.asarray(image)) for image in images]

    pipeline = upscaling()
    plain = upscale(pipeline, [0], output_type="pil")
    pipeline.watermarker = Inverts()

    marked = upscale(pipeline, [0], output_type="pil")

    np.testing.assert_array_equal(np.asarray(marked.images[0]), 255 - np.asarray(plain.images[0]))


def test_the_vae_works_in_single_precision_in_a_half_precision_pipeline(tmp_path: Path) -> None:
    """Its intermediate values can be too large for float16."""
    folder = demo_checkpoint("ldm3d-upscale")
    pipeline = StableDiffusionUpscaleLDM3DPipeline.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float16
    )

    output = upscale(quiet(pipeline), [0])

    assert pipeline.unet.dtype == torch.float16
    assert pipeline.vae.dtype == torch.float32
    whole = upscale(upscaling(), [0])
    assert (output.images - whole.images).abs().mean() < 0.02
    assert (output.depth - whole.depth).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_res": (48, 60)}, r"multiples of 8, not \(48, 60\)"),
        ({"target_res": (0, 64)}, r"multiples of 8, not \(0, 64\)"),
        ({"rgb": [picture()] * 2}, "1 prompt, 2 rgb images and 1 depth image"),
        ({"noise_level": 351}, "from 0 to 350, not 351"),
        ({"noise_level": -1}, "from 0 to 350, not -1"),
        ({"output_type": "latent"}, "pt, np, pil, not 'latent'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_right_are_refused(change: dict[str, Any], message: str) -> None:
    """Before any work is done, with the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        upscale(upscaling(), [0], **change)
