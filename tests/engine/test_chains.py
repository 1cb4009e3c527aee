"""A chain makes what the same diffusers calls make one after the other, on the worker."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from benchmarks.parity.plain_diffusers import depth_map
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from tests.support.checkpoints import demo
from tests.support.in_process import (
    Made,
    Record,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    mask,
    outcomes,
    plan_for,
    write_rows,
)

LEVELS = 2
MODELS = {
    name: {"checkpoint": f"demo:{kind}"}
    for name, kind in {
        "sd": "sd",
        "x2": "latent-upscale",
        "x4": "upscale",
        "xl": "sdxl",
        "refiner": "sdxl-refiner",
        "rgbd": "ldm3d",
        "rgbd-up": "ldm3d-upscale",
        "deepened": "depth2img",
        "varying": "variation",
    }.items()
}
STEPS: Record = {"num_inference_steps": 4}
GENTLE: Record = {"noise_level": 10, "guidance_scale": 3.0}
"""Of the upscaler with random weights: much guidance multiplies the rounding of the steps before it."""
ROUTES: Record = {
    "text2img": {"model": "sd", **STEPS},
    "upscale": {"model": "x4", **STEPS, **GENTLE},
    "latent_upscale": {"model": "x2", **STEPS},
    "img2img": {"model": "sd", **STEPS, "strength": 0.6},
    "poster": {"task": "text2img", "model": "sd", **STEPS, "then": ["latent_upscale"], "keep_steps": True},
    "again": {"task": "text2img", "model": "sd", **STEPS, "then": ["img2img", "upscale"]},
    "refine": {"task": "img2img", "model": "refiner", "num_inference_steps": 5, "denoising_start": 0.6},
    "fine": {
        "task": "text2img",
        "model": "xl",
        "num_inference_steps": 5,
        "denoising_end": 0.6,
        "then": ["refine"],
        "keep_steps": True,
    },
    "ldm3d": {"model": "rgbd", **STEPS},
    "ldm3d_upscale": {"model": "rgbd-up", **STEPS, "height": 128, "width": 128},
    "depth2img": {"model": "deepened", **STEPS, "strength": 1.0},
    "redrawn": {"task": "text2img", "model": "sd", **STEPS, "then": ["depth2img"]},
    "varied": {"task": "variation", "model": "varying", **STEPS, "then": ["depth2img"]},
    "inpaint": {"model": "sd", **STEPS, "padding_mask_crop": 4},
    "filled": {"task": "text2img", "model": "sd", **STEPS, "then": ["inpaint"]},
    "safe": {"model": "sd", **STEPS},
    "safely": {"task": "safe", "model": "sd", **STEPS, "then": ["latent_upscale"], "keep_steps": True},
    "mended": {"task": "img2img", "model": "sd", **STEPS, "strength": 0.6, "then": ["fill"]},
    "fill": {"task": "inpaint", "model": "sd", **STEPS},
    "stretched": {"task": "img2img", "model": "sd", **STEPS, "strength": 0.6, "then": ["stretch", "img2img"]},
    "stretch": {"task": "inpaint", "model": "sd", **STEPS, "height": 48, "width": 96},
    "cropped": {"task": "img2img", "model": "sd", **STEPS, "strength": 0.6, "then": ["inpaint"]},
    "deep": {"task": "ldm3d", "model": "rgbd", **STEPS, "then": ["ldm3d_upscale"]},
    "larger": {"task": "text2img", "model": "sd", **STEPS, "then": ["img2img", "latent_upscale"]}
    | {"keep_steps": True},
}
PROMPTS = {3: "a fox", 4: "an owl"}
"""The prompt of each seed: every chain has two rows, which share its calls."""
GIVEN: dict[int, Record] = {
    3: {"image": drawn_image(), "mask_image": mask()},
    4: {"image": encoded(image_of({"image": drawn_image()}).rotate(90))}
    | {"mask_image": encoded(image_of({"image": mask()}).rotate(-90).convert("L"))},
}
"""The images that the rows bring themselves, where a chain begins with one."""
ROWS = [
    {"row_id": f"{task}-{seed}", "task": task, "prompt": prompt, "seed": seed}
    | (GIVEN[seed] if task in ("mended", "stretched") else {})
    for task in ("poster", "again", "fine", "deep", "larger", "mended", "stretched", "text2img")
    for seed, prompt in PROMPTS.items()
]


@cache
def pipeline_of(kind: str, cls: str) -> Any:
    """The pipeline of a demo checkpoint."""
    pipeline = pipeline_class(cls).from_pretrained(demo(kind), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    if cls == "StableDiffusionLDM3DPipeline":
        pipeline.image_processor = LDM3DImageProcessor()
    return pipeline


def call(kind: str, cls: str, seed: int = 3, **arguments: Any) -> Any:
    """A plain call of a pipeline, for the seed and its prompt."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline_of(kind, cls)(prompt=PROMPTS[seed], generator=generator, **arguments)


def poster(seed: int) -> list[Image.Image]:
    latents = call("sd", "StableDiffusionPipeline", seed, **STEPS, output_type="latent").images
    cls = "StableDiffusionLatentUpscalePipeline"
    first = call("sd", "StableDiffusionPipeline", seed, **STEPS).images
    return [*first, *call("latent-upscale", cls, seed, image=latents, **STEPS).images]


def redrawn_once(seed: int) -> list[Image.Image]:
    first = call("sd", "StableDiffusionPipeline", seed, **STEPS).images[0]
    cls = "StableDiffusionImg2ImgPipeline"
    return [first, *call("sd", cls, seed, image=first, strength=0.6, **STEPS).images]


def again(seed: int) -> list[Image.Image]:
    cls, second = "StableDiffusionUpscalePipeline", redrawn_once(seed)[-1]
    return [*call("upscale", cls, seed, image=second, **GENTLE, **STEPS).images]


def larger(seed: int) -> list[Image.Image]:
    cls, images = "StableDiffusionLatentUpscalePipeline", redrawn_once(seed)
    second: Record = {"image": images[0], "strength": 0.6, "output_type": "latent"}
    latents = call("sd", "StableDiffusionImg2ImgPipeline", seed, **STEPS, **second).images
    return [*images, *call("latent-upscale", cls, seed, image=latents, **STEPS).images]


def fine(seed: int) -> list[Image.Image]:
    five = {"num_inference_steps": 5}
    cls = "StableDiffusionXLPipeline"
    base = call("sdxl", cls, seed, denoising_end=0.6, output_type="latent", **five).images
    cls = "StableDiffusionXLImg2ImgPipeline"
    return [*call("sdxl-refiner", cls, seed, image=base, denoising_start=0.6, **five).images]


def mended(seed: int) -> list[Image.Image]:
    image, mask_image = (image_of({"image": GIVEN[seed][name]}) for name in ("image", "mask_image"))
    cls = "StableDiffusionImg2ImgPipeline"
    first = call("sd", cls, seed, image=image, strength=0.6, **STEPS).images[0]
    cls, size = "StableDiffusionInpaintPipeline", {"width": 64, "height": 64}
    return [*call("sd", cls, seed, image=first, mask_image=mask_image, **size, **STEPS).images]


def stretched(seed: int) -> list[Image.Image]:
    image, mask_image = (image_of({"image": GIVEN[seed][name]}) for name in ("image", "mask_image"))
    cls = "StableDiffusionImg2ImgPipeline"
    first = call("sd", cls, seed, image=image, strength=0.6, **STEPS).images[0]
    size = {"height": 48, "width": 96}
    second = call(
        "sd", "StableDiffusionInpaintPipeline", seed, image=first, mask_image=mask_image, **size, **STEPS
    ).images[0]
    return [*call("sd", cls, seed, image=second, strength=0.6, **STEPS).images]


def deep(seed: int) -> list[Image.Image]:
    first = call("ldm3d", "StableDiffusionLDM3DPipeline", seed, **STEPS)
    cls, rgb, depth = "StableDiffusionUpscaleLDM3DPipeline", first.rgb[0], first.depth[0]
    return [*call("ldm3d-upscale", cls, seed, rgb=rgb, depth=depth, target_res=(128, 128), **STEPS).images]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All chains in one job."""
    folder = tmp_path_factory.mktemp("chains")
    path = write_rows(folder / "in.parquet", ROWS)
    return make(job_spec(path, folder / "out", models=MODELS, routes=ROUTES))


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two images."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("chain", [poster, again, fine, deep, larger, mended, stretched])
@pytest.mark.parametrize("seed", PROMPTS)
def test_a_chain_is_what_plain_calls_give_one_after_the_other(made: Made, chain: Any, seed: int) -> None:
    """Latents go on as latents where the next pipeline takes them; every step starts from the row's seed.

    What a row of a call hands on is its own, and so are the images of its steps, the first one first.
    """
    ours = made.row(f"{chain.__name__}-{seed}")

    theirs = chain(seed)

    assert ours["status"] == "ok", ours["error_message"]
    kept = [image_of({"image": step}) for step in ours["step_images"] or []]
    images = [*kept, image_of(ours)] if chain in (poster, larger) else [image_of(ours)]
    assert [image.size for image in images] == [image.size for image in theirs]
    assert [levels_apart(*pair) <= LEVELS for pair in zip(images, theirs, strict=True)] == [True] * len(
        theirs
    )
    assert image_of(ours).size == (ours["width"], ours["height"])


def test_depth_goes_on_beside_the_image(made: Made) -> None:
    """The chain's depth map is the last step's, at its size."""
    depth = Image.open(io.BytesIO(made.row("deep-3")["depth"]["bytes"]))

    assert (depth.mode, depth.size) == ("I;16", (128, 128))


def test_steps_are_kept_on_request(made: Made) -> None:
    """Of `poster` and `fine`, whose latents are decoded for it; not of the others."""
    assert [len(made.row(f"{name}-3")["step_images"] or []) for name in ("poster", "fine", "again")] == [
        1,
        1,
        0,
    ]


def test_hugging_face_opens_kept_steps_as_images(made: Made, tmp_path: Path) -> None:
    """The column is a list of images, not of bytes."""
    from datasets import load_dataset

    files = str(Path(made.plan.job.spec.output.path) / "data" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    row = next(row for row in rows if row["row_id"] == "poster-3")

    assert row["step_images"][0].size == (64, 64)


def test_a_later_step_reads_the_depth_that_the_row_brings(tmp_path: Path) -> None:
    """As the first one would; it estimates one where the row has none."""
    ramp = depth_map()
    rows = [
        {"row_id": name, "task": "redrawn", "prompt": "a fox", "seed": 3, "depth_map": depth}
        for name, depth in (("given", ramp), ("estimated", None))
    ]
    path = write_rows(tmp_path / "in.parquet", rows)
    first = call("sd", "StableDiffusionPipeline", **STEPS).images[0]
    values = np.asarray(Image.open(io.BytesIO(ramp["bytes"]))).astype(np.float32)
    depths = {"given": torch.from_numpy(values)[None], "estimated": None}

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    for name, depth in depths.items():
        cls = "StableDiffusionDepth2ImgPipeline"
        plain = call("depth2img", cls, image=first, depth_map=depth, strength=1.0, **STEPS).images[0]
        difference = np.abs(np.asarray(image_of(made.row(name)), dtype=int) - np.asarray(plain, dtype=int))
        assert difference.max() <= LEVELS, name
    assert made.row("given")["image_sha256"] != made.row("estimated")["image_sha256"]


def test_a_step_is_not_given_what_only_a_later_one_reads(tmp_path: Path) -> None:
    """A variation takes no depth map, and would raise for one."""
    row = {"row_id": 1, "task": "varied", "prompt": "x", "image": drawn_image(), "depth_map": depth_map()}
    path = write_rows(tmp_path / "in.parquet", [row])

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == ["ok"], made.rows[0]["error_message"]


def test_a_failure_names_its_step(tmp_path: Path) -> None:
    """The first step went well; the second one could not."""
    flat = encoded(Image.fromarray(np.full((64, 64), 500, np.uint16)))
    rows: list[Record] = [
        {"row_id": "black", "task": "filled", "mask_image": encoded(Image.new("L", (64, 64)))},
        {"row_id": "flat", "task": "redrawn", "depth_map": flat},
    ]
    path = write_rows(tmp_path / "in.parquet", [{"prompt": "x"} | row for row in rows])

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == ["empty_mask", "constant_depth"]
    said = [row["error_message"].partition(": ")[0] for row in made.rows]
    assert said == ["step 2 (inpaint)", "step 2 (depth2img)"]


def test_a_mask_must_fit_the_image_of_its_step(tmp_path: Path) -> None:
    """Which the first step makes here, of the size that the row asks for."""
    rows = [
        {
            "row_id": width,
            "task": "filled",
            "prompt": "x",
            "width": 96,
            "height": 64,
            "mask_image": mask((width, 64)),
        }
        for width in (64, 96)
    ]
    path = write_rows(tmp_path / "in.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == ["mask_size", "ok"]
    assert "the image that step 2 is given, 96x64; `mask_image` is 64x64" in made.row(64)["error_message"]


def test_a_mask_may_fit_what_the_first_step_makes_of_the_rows_image(tmp_path: Path) -> None:
    """Which is cut down to multiples of eight; the row's own size will do too, but for a crop."""
    rows = [
        {"row_id": f"{task} {width}", "task": task, "prompt": "x", "image": drawn_image((70, 90))}
        | {"mask_image": mask((width, height))}
        for task in ("mended", "cropped")
        for width, height in ((64, 88), (70, 90), (72, 96))
    ]
    path = write_rows(tmp_path / "in.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == ["ok", "ok", "mask_size", "ok", "mask_size", "mask_size"]


def test_safes_image_goes_on_as_one(tmp_path: Path) -> None:
    """Its pipeline gives no latents: what is handed on is the image that is kept."""
    row = {"row_id": 1, "task": "safely", "prompt": "a fox", "seed": 3}
    path = write_rows(tmp_path / "in.parquet", [row])

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES)).row(1)

    kept = image_of({"image": made["step_images"][0]})
    cls = "StableDiffusionLatentUpscalePipeline"
    plain = call("latent-upscale", cls, image=kept, **STEPS).images[0]
    assert np.abs(np.asarray(image_of(made), dtype=int) - np.asarray(plain, dtype=int)).max() <= LEVELS


def test_shares_that_leave_no_step_fail_their_row(tmp_path: Path) -> None:
    """Of two steps the second begins in the middle, long before the last tenth."""
    rows = [
        {
            "row_id": f"{start}",
            "task": "refine",
            "prompt": "x",
            "image": drawn_image(),
            "num_inference_steps": 2,
        }
        | {"denoising_start": start, "scheduler_options": '{"timestep_spacing": "trailing"}'}
        for start in (0.4, 0.9)
    ]
    path = write_rows(tmp_path / "in.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == ["ok", "invalid_parameter"]
    assert "no step is left to run" in made.rows[1]["error_message"]


@pytest.mark.parametrize(("end", "outcome"), [(0.499, "ok"), (0.498, "invalid_parameter")])
def test_a_share_may_end_at_its_only_step(tmp_path: Path, end: float, outcome: str) -> None:
    """XL runs the steps at and above a share's end: of two, at 501 and 1, that is the first or none."""
    row = {"row_id": 1, "task": "text2img", "model": "xl", "prompt": "x", "num_inference_steps": 2}
    path = write_rows(tmp_path / "in.parquet", [row | {"denoising_end": end}])

    made = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert outcomes(made) == [outcome]


def test_sizes_that_a_later_step_cannot_take_are_refused_at_plan(tmp_path: Path) -> None:
    """The latent upscaler wants multiples of 64, and it comes second."""
    rows = [{"row_id": 1, "task": "poster", "prompt": "x", "width": 96, "height": 64}]
    path = write_rows(tmp_path / "in.parquet", rows)

    failed = make(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES)).rows[0]

    assert failed["error_code"] == "invalid_size"
    assert "width is 96, not a multiple of 64, which step 2 (latent_upscale)" in failed["error_message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"poster": {"task": "text2img", "model": "sd", "then": ["upscael"]}}, "did you mean `upscale`"),
        ({"poster": {"task": "text2img", "model": "sd", "then": ["again"]}}, "a `then` of its own"),
        ({"poster": {"task": "text2img", "model": "sd", "then": ["text2img"]}}, "takes no image"),
        (
            {"img2img": {"model": "sd", "num_inference_steps": 1, "strength": 0.1}},
            "routes.img2img: strength 0.1 of 1 step runs no step at all, and rows cannot change",
        ),
    ],
)
def test_a_chain_that_cannot_run_is_a_mistake_of_the_spec(tmp_path: Path, changes: Record, said: str) -> None:
    """Found before any row is read."""
    path = write_rows(tmp_path / "in.parquet", ROWS)

    with pytest.raises((SpecError, ValueError), match=said):
        make_survey(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES | changes))


def test_a_chains_shards_go_by_its_first_model(tmp_path: Path) -> None:
    """A worker that has it loaded is given them."""
    path = write_rows(tmp_path / "in.parquet", ROWS)

    plan = plan_for(job_spec(path, tmp_path / "out", models=MODELS, routes=ROUTES))

    assert plan.files[0].rows_by_model == {"rgbd": 2, "sd": 12, "xl": 2}
