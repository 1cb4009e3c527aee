"""A flagged image is data: kept, blacked or dropped by the spec's word, and nobody else's loss."""

import io
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_safe.safety_checker import (
    SafeStableDiffusionSafetyChecker,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from rich.console import Console

from actors.engine.calls.chains import withhold
from actors.engine.calls.outputs import PendingOutputs
from actors.engine.calls.safety_checks import SafetyChecks
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.engine import Generated
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.pipelines.safety_checker import SafetyChecker
from actors.engine.samples import Sample
from actors.images.encoding import Pixels
from actors.storage.output import open_output
from demo.small_components import feature_extractor
from jobs.output.job_record import claim
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import DarkroomError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.parameters import SLD_PRESETS
from schemas.systems.system_table import find_system
from tests.support.checkpoints import demo
from tests.support.in_process import (
    DEVICE,
    Made,
    Record,
    diffusers_messages,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    mask,
    model_cache,
    printed_by_verify,
    worker_for,
    write_rows,
)

FLAGGED = "r2"
ROWS: list[Record] = [
    {"row_id": f"r{i}", "prompt": f"prompt {i}", "seed": i, "num_inference_steps": 2} for i in range(6)
]


def checker_that_knows(
    rows: list[Record], is_flagged: Callable[[Record], bool]
) -> StableDiffusionSafetyChecker:
    """One that flags the images of some rows, by what they show, and none of the others'."""
    checker = StableDiffusionSafetyChecker.from_pretrained(demo("sd-safety"), subfolder="safety_checker")
    seen = feature_extractor()([image_of(row) for row in rows], return_tensors="pt").pixel_values
    flagged = torch.tensor([is_flagged(row) for row in rows])
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(seen)[1]))
        for concept, bad in enumerate(embeds[flagged]):
            checker.concept_embeds[concept] = bad
            # Half-way between the image itself and the one most like it.
            checker.concept_embeds_weights[concept] = (1 + (embeds[~flagged] @ bad).max()) / 2
    return checker


def is_the_flagged_row(row: Record) -> bool:
    """Whether it is the row `r2`."""
    return bool(row["row_id"] == FLAGGED)


@pytest.fixture(scope="module")
def flags_one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """demo:sd-safety with such a checker."""
    folder = tmp_path_factory.mktemp("flags-one")
    made = make(job_spec(write_rows(folder / "rows.parquet", ROWS), folder / "out"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd-safety"), use_safetensors=True)
    pipeline.register_modules(safety_checker=checker_that_knows(made.rows, is_the_flagged_row))
    pipeline.save_pretrained(folder / "checkpoint")
    return str(folder / "checkpoint")


def flagging_spec(folder: Path, checkpoint: str, rows: list[Record] = ROWS, **safety: str) -> JobSpec:
    """One model that has a checker."""
    return job_spec(
        write_rows(folder / "in.parquet", rows),
        folder / "out",
        models={"sd": {"checkpoint": checkpoint}},
        safety=safety,
    )


@pytest.fixture(scope="module")
def unchecked(flags_one: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The rows with the checker switched off."""
    return make(flagging_spec(tmp_path_factory.mktemp("off"), flags_one, checker="off"))


@pytest.mark.parametrize("flagged", ["drop", "black", "keep"])
def test_a_flagged_image_is_stored_as_the_spec_says_and_its_neighbours_are_untouched(
    flags_one: str, unchecked: Made, tmp_path: Path, flagged: str
) -> None:
    """Its row is filtered; the five others, in the same call, keep every bit."""
    made = make(flagging_spec(tmp_path, flags_one, flagged=flagged))

    others = [row for row in made.rows if row["row_id"] != FLAGGED]
    row, plain = made.row(FLAGGED), unchecked.row(FLAGGED)
    assert (row["status"], row["nsfw"], row["error_code"]) == ("filtered", True, None)
    assert {(other["status"], other["nsfw"]) for other in others} == {("ok", False)}
    assert [other["image_sha256"] for other in others] == [
        unchecked.row(other["row_id"])["image_sha256"] for other in others
    ]
    assert [(report.ok, report.filtered, report.failed) for report in made.reports] == [(5, 1, 0)]
    if flagged == "drop":
        assert (row["image"], row["width"], row["image_sha256"]) == (None, None, None)
    elif flagged == "black":
        assert (row["width"], row["height"]) == image_of(row).size == image_of(plain).size
        assert image_of(row).getbbox() is None
    else:
        assert row["image"] == plain["image"]


def test_switched_off_nothing_is_flagged(unchecked: Made) -> None:
    """`nsfw` is null: nobody has looked."""
    assert {(row["status"], row["nsfw"]) for row in unchecked.rows} == {("ok", None)}
    assert image_of(unchecked.row(FLAGGED)).getbbox() is not None


def test_a_checkpoint_without_a_checker_flags_nothing(tmp_path: Path) -> None:
    """`nsfw` is null there too."""
    made = make(flagging_spec(tmp_path, "demo:sd", ROWS[:1]))

    assert [(row["status"], row["nsfw"]) for row in made.rows] == [("ok", None)]


def test_the_verdict_is_diffusers_own(flags_one: str, tmp_path: Path) -> None:
    """What its pipeline says of each image in a plain call, where it blackens what is flagged."""
    made = make(flagging_spec(tmp_path, flags_one, flagged="black"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(flags_one, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)

    for row in ROWS:
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        theirs = pipeline(row["prompt"], num_inference_steps=2, generator=generator)
        ours = made.row(row["row_id"])
        assert [ours["nsfw"]] == theirs.nsfw_content_detected
        difference = np.asarray(image_of(ours), np.int16) - np.asarray(theirs.images[0], np.int16)
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("task", ["safe", "text2img"])
def test_safes_verdict_and_images_are_those_of_its_own_pipeline(tmp_path: Path, task: str) -> None:
    """Its `nsfw_content_detected`, its blackened `images` and, under keep, its `unsafe_images`.

    Row by row, for of a batch it gives one flag.
    """
    guided = [row | {"sld_preset": "max"} for row in ROWS]
    path = write_rows(tmp_path / "rows.parquet", guided)

    def made_with(checkpoint: str, name: str, **safety: str) -> Made:
        models, routes = {"safe": {"checkpoint": checkpoint}}, {task: {"model": "safe"}}
        folder = tmp_path / name
        return make(job_spec(path, folder, models=models, routes=routes, default_route=task, safety=safety))

    unchecked = made_with("demo:safe", "unchecked")
    checker = checker_that_knows(unchecked.rows, is_the_flagged_row)
    pipeline = diffusers.StableDiffusionPipelineSafe.from_pretrained(
        demo("safe"), safety_checker=None, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(safety_checker=checker, feature_extractor=feature_extractor())
    pipeline.save_pretrained(tmp_path / "checkpoint")
    name_safes_own_checker(tmp_path / "checkpoint")
    own = SafeStableDiffusionSafetyChecker(checker.config)
    own.load_state_dict(checker.state_dict())
    pipeline.register_modules(safety_checker=own)

    blackened = made_with(str(tmp_path / "checkpoint"), "black", flagged="black")
    as_it_is = made_with(str(tmp_path / "checkpoint"), "keep", flagged="keep")

    assert {row["nsfw"] for row in unchecked.rows} == {None}
    for row in guided:
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        numbers = SLD_PRESETS["max"]
        theirs = pipeline(row["prompt"], num_inference_steps=2, generator=generator, **numbers)
        black, kept = blackened.row(row["row_id"]), as_it_is.row(row["row_id"])
        flag = bool(np.all(theirs.nsfw_content_detected))
        assert (black["nsfw"], kept["nsfw"], flag) == (row["row_id"] == FLAGGED,) * 3
        unflagged = theirs.unsafe_images if flag else theirs.images
        for ours, their in ((black, theirs.images[0]), (kept, unflagged[0])):
            assert np.abs(np.asarray(image_of(ours), np.int16) - np.asarray(their, np.int16)).max() <= 2


def test_one_flagged_image_of_a_row_filters_the_row(flags_one: str, tmp_path: Path) -> None:
    """Its other images are stored all the same."""
    rows = [ROWS[2] | {"num_images_per_prompt": 2}, ROWS[0]]

    made = make(flagging_spec(tmp_path, flags_one, rows))

    assert [(row["status"], row["image"] is None) for row in made.rows] == [
        ("filtered", True),
        ("ok", False),
        ("ok", False),
    ]
    assert made.reports[0].filtered == 1


def name_safes_own_checker(checkpoint: Path) -> None:
    """As it is published, with a class that diffusers 0.42.1 no longer finds."""
    stored = checkpoint / "model_index.json"
    entry = {"safety_checker": ["stable_diffusion_safe", "SafeStableDiffusionSafetyChecker"]}
    stored.write_text(json.dumps(json.loads(stored.read_text()) | entry))


# Every system whose checkpoints can have a checker.

IMAGE, DEPTH = drawn_image(), encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)))
MASKED = {"image": IMAGE, "mask_image": mask()}
SYSTEM_ROWS: list[Record] = [
    {"row_id": "text", "model": "sd-safety", "task": "text2img"},
    {"row_id": "image", "model": "sd-safety", "task": "img2img", "image": IMAGE},
    {"row_id": "crop", "model": "sd-safety", "task": "inpaint", **MASKED, "padding_mask_crop": 4},
    {"row_id": "sld", "model": "sd-safety", "task": "safe"},
    {"row_id": "nine", "model": "sd-inpaint", "task": "inpaint", **MASKED},
    {"row_id": "safe", "model": "safe", "task": "text2img"},
    {"row_id": "varied", "model": "variation", "task": "variation", "image": IMAGE},
    {"row_id": "up", "model": "upscale", "task": "upscale", "image": drawn_image((32, 32))},
    {"row_id": "ldm3d", "model": "ldm3d", "task": "ldm3d"},
    {"row_id": "ldm3d-up", "model": "ldm3d-upscale", "task": "ldm3d_upscale", "image": IMAGE}
    | {"depth_map": DEPTH, "height": 128, "width": 128},
]
SYSTEM_ROWS = [
    # With strength 1, two seeds give images that the checker can tell apart.
    row | {"prompt": "a fox", "seed": 1, "num_images_per_prompt": 2, "strength": 1.0}
    for row in SYSTEM_ROWS
]
KINDS = list(dict.fromkeys(row["model"] for row in SYSTEM_ROWS))
TASKS = {row["task"]: row["model"] for row in reversed(SYSTEM_ROWS)}


def is_a_second_image(row: Record) -> bool:
    """Whether it is an image of a row's second seed."""
    return bool(row["image_index"] == 1)


def system_spec(folder: Path, checkpoints: dict[str, str], **safety: str) -> JobSpec:
    """A job of the rows of every system."""
    return job_spec(
        write_rows(folder / "in.parquet", SYSTEM_ROWS, {"depth_map": IMAGE_TYPE}),
        folder / "out",
        models={kind: {"checkpoint": checkpoint} for kind, checkpoint in checkpoints.items()},
        routes={task: {"model": model, "num_inference_steps": 2} for task, model in TASKS.items()},
        safety=safety,
    )


def strict_checkpoint(kind: str, folder: Path, rows: list[Record]) -> str:
    """A demo checkpoint with a safety checker that flags the second image of each of the rows."""
    index = json.loads((demo(kind) / "model_index.json").read_text())
    cls = pipeline_class(index["_class_name"])
    pipeline = cls.from_pretrained(demo(kind), use_safetensors=True)
    checker = checker_that_knows(rows, is_a_second_image)
    pipeline.register_modules(safety_checker=checker, feature_extractor=feature_extractor())
    pipeline.save_pretrained(folder / kind)
    if kind == "safe":
        name_safes_own_checker(folder / kind)
    return str(folder / kind)


@pytest.fixture(scope="module")
def unchecked_systems(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The rows of every system, by checkpoints that flag nothing."""
    checkpoints = {kind: f"demo:{kind}" for kind in KINDS}
    return make(system_spec(tmp_path_factory.mktemp("unchecked"), checkpoints))


@pytest.fixture(scope="module")
def strict(unchecked_systems: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of every system that can have a checker, by kind."""
    folder = tmp_path_factory.mktemp("strict")
    rows = {kind: [row for row in unchecked_systems.rows if row["model"] == kind] for kind in KINDS}
    return {kind: strict_checkpoint(kind, folder, rows[kind]) for kind in KINDS}


@pytest.mark.parametrize("flagged", ["drop", "black", "keep"])
def test_every_system_with_a_checker_has_its_images_and_depth_maps_filtered(
    strict: dict[str, str], unchecked_systems: Made, tmp_path: Path, flagged: str
) -> None:
    """By what each image shows: a row's first image stays as it is, and its second is flagged.

    Also those of Safe, whose own checker diffusers cannot load, and of a cropped inpainting.
    """
    made = make(system_spec(tmp_path, strict, flagged=flagged))

    assert {
        (row["row_id"], row["error_message"])
        for row in made.rows
        if row["status"] != ("filtered" if is_a_second_image(row) else "ok")
    } == set()
    for row in made.rows:
        names = ("image", "depth") if row["row_id"].startswith("ldm3d") else ("image",)
        plain = unchecked_systems.row(row["row_id"], row["image_index"])
        assert row["nsfw"] is is_a_second_image(row)
        if row["nsfw"] and flagged == "drop":
            assert (row["image"], row["depth"]) == (None, None)
        elif row["nsfw"] and flagged == "black":
            stored = [Image.open(io.BytesIO(row[name]["bytes"])) for name in names]
            assert [image.getbbox() for image in stored] == [None] * len(names), row["row_id"]
        else:
            assert [row[name]["bytes"] for name in names] == [plain[name]["bytes"] for name in names]


CHAIN: Record = SYSTEM_ROWS[0] | {"task": "chain", "row_id": 1}


@pytest.mark.parametrize("next_step", ["upscale", "latent-upscale"])
@pytest.mark.parametrize("flagged", ["drop", "black", "keep"])
def test_a_step_that_is_flagged_filters_the_chain(
    strict: dict[str, str], tmp_path: Path, flagged: str, next_step: str
) -> None:
    """Also where the next model has no checker, or one that flags nothing, and where only latents go on to
    it: what is stored has the last step's size, and no earlier step gives the image away."""
    second = {"upscale": ("upscale", 4), "latent-upscale": ("latent_upscale", 2)}[next_step]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", [CHAIN]),
        tmp_path / "out",
        models={
            "sd-safety": {"checkpoint": strict["sd-safety"]},
            "up": {"checkpoint": strict.get(next_step, f"demo:{next_step}")},
        },
        routes={
            "chain": {"task": "text2img", "model": "sd-safety", "num_inference_steps": 2, "keep_steps": True}
            | {"then": ["second"]},
            "second": {"task": second[0], "model": "up", "num_inference_steps": 2},
        },
        default_route="chain",
        safety={"flagged": flagged},
    )

    engine = DiffusersEngine(model_cache(spec), spec)

    made = make(spec, engine)

    first, row = made.row(1), made.row(1, 1)
    # PNDM asks once more than it has steps. An image of which nothing is stored goes no further.
    assert engine.counts["unet"].images == 2 * 3 + (1 if flagged == "drop" else 2) * 2
    assert (first["status"], first["nsfw"]) == ("ok", False), first["error_message"]
    assert (row["status"], row["nsfw"]) == ("filtered", True), row["error_message"]
    for stored, is_black in ((first, False), (row, flagged == "black")):
        if stored is row and flagged == "drop":
            assert not stored["image"]
            assert not stored["step_images"]
            continue
        images = [image_of(stored), *(image_of({"image": step}) for step in stored["step_images"])]
        assert [image.size[0] for image in images] == [64 * second[1], 64]
        assert {image.getbbox() is None for image in images} == {is_black}


def test_an_image_that_its_last_step_flags_takes_its_earlier_steps_with_it() -> None:
    """What led to it is withheld as it is, in whatever form the spec says."""
    opened: Any = None
    picture, depth = np.full((8, 16, 3), 9, np.uint8), np.full((8, 16), 9, np.uint16)
    sample = Sample(opened=opened, image_index=0, step_images=(picture, picture))
    flagged = Generated(sample=sample, pixels=picture, latents=picture, depth=depth, nsfw=True)

    dropped, black, kept = (withhold(flagged, form) for form in ("drop", "black", "keep"))

    assert (dropped.pixels, dropped.latents, dropped.depth, dropped.sample.step_images) == (None,) * 3 + ((),)
    for image, original in zip(
        (black.pixels, black.depth, *black.sample.step_images),
        (picture, depth, picture, picture),
        strict=True,
    ):
        assert image is not None
        assert (image.shape, image.dtype, image.any()) == (original.shape, original.dtype, False)
    assert kept is flagged


# What is loaded, and what is said.


def test_the_checkers_weights_count_once(tmp_path: Path) -> None:
    """However many pipelines are built; switched off, it is not in memory at all."""
    with_checker = LoadedModel("sd", ModelSpec(checkpoint="demo:sd-safety"), LoadOptions(device=DEVICE))
    without = LoadedModel(
        "sd", ModelSpec(checkpoint="demo:sd-safety"), LoadOptions(device=DEVICE, with_checker=False)
    )
    for task in ("text2img", "img2img", "inpaint"):
        system = find_system("sd", task)
        assert system is not None
        assert with_checker.pipeline(system, None).safety_checker is None

    assert with_checker.safety_checker is not None
    checker = with_checker.safety_checker.checker
    size = sum(tensor.nbytes for tensor in (*checker.parameters(), *checker.buffers()))
    assert without.safety_checker is None
    assert with_checker.weight_bytes == without.weight_bytes + size


def test_no_warning_is_given_of_a_checker_that_is_not_there(flags_one: str, tmp_path: Path) -> None:
    """Neither of one that a checkpoint should have, nor that black images would be returned."""
    base = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    base.register_to_config(requires_safety_checker=True)
    base.save_pretrained(tmp_path / "bare")

    with diffusers_messages() as said:
        for checkpoint, checker in ((str(tmp_path / "bare"), "on"), (flags_one, "on"), (flags_one, "off")):
            folder = tmp_path / f"{checker}-{Path(checkpoint).name}"
            folder.mkdir()
            make(flagging_spec(folder, checkpoint, ROWS[2:3], checker=checker))

    assert [line for line in said if "safety" in line.lower() or "NSFW" in line] == []


def planned(spec: JobSpec) -> str:
    """What `darkroom plan` prints."""
    printed = io.StringIO()
    print_plan(*make_plan(make_survey(spec)), Console(file=printed, width=200))
    return printed.getvalue()


@pytest.mark.parametrize(
    ("safety", "said"),
    [
        ({}, "safety checker in sd: images that it flags are dropped, and their rows are filtered"),
        ({"flagged": "black"}, "safety checker in sd: images that it flags are stored as black images"),
        ({"flagged": "keep"}, "safety checker in sd: images that it flags are stored as they are"),
        (
            {"checker": "off"},
            "safety checker in sd: switched off (safety.checker: off), so nothing is flagged",
        ),
    ],
)
def test_the_plan_says_who_is_checked_and_what_becomes_of_flagged_images(
    tmp_path: Path, safety: Record, said: str
) -> None:
    """And which models have no checker."""
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", ROWS),
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:sd-safety"}, "bare": {"checkpoint": "demo:sd"}},
        safety=safety,
    )

    text = planned(spec)

    assert said in text
    assert "no safety checker in bare: nothing is flagged" in text


# What `darkroom verify` says.


def finish(spec: JobSpec) -> None:
    """Make a job with its record, as `verify` wants it."""
    plan, findings = make_plan(make_survey(spec))
    claim(open_output(spec.output.path), plan, findings)
    with worker_for(plan) as worker:
        for shard in plan.shards():
            worker.run(shard)


@pytest.mark.parametrize(
    ("flagged", "counted"),
    [
        ("drop", "5 images decode and match their checksums, 1 was flagged and dropped"),
        ("black", "6 images decode and match their checksums;"),
        ("keep", "6 images decode and match their checksums;"),
    ],
)
def test_an_output_with_flagged_images_is_verified(
    flags_one: str, tmp_path: Path, flagged: str, counted: str
) -> None:
    """Whichever form the spec gives them."""
    spec = flagging_spec(tmp_path, flags_one, flagged=flagged)
    finish(spec)

    printed = printed_by_verify(spec)

    assert "(5 ok, 1 filtered, 0 failed)" in printed
    assert counted in printed


@pytest.mark.parametrize(
    ("made_as", "recorded_as", "fault"),
    [
        ("keep", "drop", "is filtered, and has an image although the spec says drop"),
        ("keep", "black", "is filtered, and has an image that is not black"),
        ("drop", "keep", "is filtered, and has no image although the spec says keep"),
    ],
)
def test_an_image_that_should_have_been_withheld_is_found(
    flags_one: str, tmp_path: Path, made_as: str, recorded_as: str, fault: str
) -> None:
    """A leak is a breach of the contract."""
    spec = flagging_spec(tmp_path, flags_one, flagged=made_as)
    finish(spec)
    record = tmp_path / "out" / "_darkroom" / "job.json"
    found = json.loads(record.read_text())
    found["spec"]["safety"]["flagged"] = recorded_as
    record.write_text(json.dumps(found))

    with pytest.raises(DarkroomError, match=fault):
        printed_by_verify(spec)


def one_batch(checker: SafetyChecker, images: list[npt.NDArray[np.uint8]]) -> list[bool]:
    """The verdicts on images that are judged together."""
    with torch.inference_mode():
        pooled = checker.checker.vision_model(checker.features(images))[1]
        return checker.flags(checker.distances(pooled).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_verdicts_are_those_of_the_checkers_own_forward(dtype: torch.dtype) -> None:
    """Thresholds in the midst of the images' distances, so that special care decides for some."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 48, 64, 3)).astype(np.uint8)
    images = [*(noise // 8 * np.arange(1, 9)[:5].repeat(8)[:, None, None, None]).astype(np.uint8)]
    own = StableDiffusionSafetyChecker.from_pretrained(demo("sd-safety"), subfolder="safety_checker").to(
        dtype
    )
    wrapped = SafetyChecker(own, feature_extractor())
    with torch.inference_mode():
        distances = wrapped.distances(own.vision_model(wrapped.features(images))[1])
    num_care = len(own.special_care_embeds)
    own.special_care_embeds_weights.data[:] = distances[:, :num_care].quantile(0.8, dim=0)
    own.concept_embeds_weights.data[:] = distances[:, num_care:].amax(dim=0) - 0.0002
    checker = SafetyChecker(own, feature_extractor())

    flags = one_batch(checker, images)

    features = checker.features(images)
    assert flags == own(clip_input=features, images=[np.zeros(0) for _ in images])[1]
    assert 0 < sum(flags) < len(flags)


class SlowDevice:
    """The copy of a call's images that arrives when it is waited for."""

    def __init__(self, number: int) -> None:
        self.waited_for = False
        pixels = torch.full((1, 64, 64, 3), 20 * number, dtype=torch.uint8)
        self.images = PendingOutputs(pixels=pixels, finite=torch.ones(1, dtype=torch.bool), copied=self)  # type: ignore[arg-type]

    def query(self) -> bool:
        """Whether the images have arrived."""
        return self.waited_for

    def synchronize(self) -> None:
        """Wait for them."""
        self.waited_for = True


def test_a_check_begins_when_its_images_have_arrived_and_a_batch_is_full() -> None:
    """Until then nobody waits. The batches depend on the order of the calls alone."""
    checker = SafetyChecker(
        StableDiffusionSafetyChecker.from_pretrained(demo("sd-safety"), subfolder="safety_checker"),
        feature_extractor(),
    )
    devices = [SlowDevice(number) for number in range(7)]
    with ThreadPoolExecutor(1) as decoders, torch.inference_mode():
        checks = SafetyChecks(checker, DEVICE, decoders, max_rows=3)
        begun = [checks.add(device.images) for device in devices]

        checks.advance(max_arriving=7)
        assert not any(device.waited_for for device in devices)
        assert not any(check.ready for check in begun)

        for device in devices[:4]:
            device.synchronize()
        checks.advance(max_arriving=7)
        decoders.submit(int).result()
        checks.advance(max_arriving=7)
        assert [check.ready for check in begun] == [True] * 3 + [False] * 4
        assert not any(device.waited_for for device in devices[4:])

        checks.advance(max_arriving=0)

    assert [len(check.verdicts()) for check in begun] == [1] * 7
    assert (checks.count.batches, checks.count.rows_run) == (3, 7)


def test_images_are_prepared_for_the_checker_on_the_decoders_threads() -> None:
    """It takes milliseconds an image, in which the engine's thread would give the device nothing to do."""
    threads: set[str] = set()
    extract = feature_extractor()

    def noting(images: Sequence[Image.Image], **options: Any) -> Any:
        threads.add(threading.current_thread().name)
        return extract(images, **options)

    network = StableDiffusionSafetyChecker.from_pretrained(demo("sd-safety"), subfolder="safety_checker")
    with ThreadPoolExecutor(1, "decoder") as decoders, torch.inference_mode():
        checks = SafetyChecks(SafetyChecker(network, noting), DEVICE, decoders, max_rows=4)
        check = checks.add(SlowDevice(1).images)

        checks.advance(max_arriving=0)

    assert check.verdicts() == [False]
    assert threads == {"decoder_0"}


def test_an_image_for_which_the_checker_fails_costs_its_row_alone(
    flags_one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: here the preparation of one image."""
    plain = SafetyChecker.features
    calls: list[int] = []

    def features(self: SafetyChecker, images: Sequence[Pixels]) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 1:
            raise ValueError("no features")
        return plain(self, images)

    monkeypatch.setattr(SafetyChecker, "features", features)
    rows = [row | {"guidance_scale": 5.0 + number} for number, row in enumerate(ROWS)]

    made = make(flagging_spec(tmp_path, flags_one, rows), num_threads=1)

    codes = [row["error_code"] for row in made.rows]
    assert codes.count("generation_error") == 1
    assert codes.count(None) == len(ROWS) - 1
