"""Facts about the demo's checkpoints, their cache, and the demo's rows."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.model_cards import read_card
from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from actors.engine.quirks.ldm3d_upscale import StableDiffusionUpscaleLDM3DPipeline
from demo.make_rows import (
    BROKEN,
    IMAGE_COLUMNS,
    ROWS,
    SCHEMA,
    demo_rows,
    disc_mask,
    night,
    sunset,
    write_rows,
)
from demo.random_checkpoints import BUILDERS, build_demo_model
from demo.random_checkpoints import main as build_program
from models import trained_models
from models.demo_cache import RANDOM_KINDS, build_missing, demo_checkpoint, demo_folder
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.spec.spec_file import load_spec
from schemas.systems.system_table import SYSTEMS
from tests.support.checkpoints import demo
from tests.support.running import ROOT

pytestmark = [
    # diffusers 0.42.1 opens an autocast region in Depth2Img whatever the dtype,
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning:diffusers.pipelines.stable_diffusion"),
    # and calls its own deprecated method in Safe.
    pytest.mark.filterwarnings(
        "ignore:The decode_latents method:FutureWarning:diffusers.pipelines.deprecated.stable_diffusion_safe"
    ),
]

EDITORS = {
    "sd": (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
    "sdxl": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
}
Values = dict[str, Any]


def depth_map(*, falling: bool) -> torch.Tensor:
    slope = torch.linspace(0, 1, 64).expand(1, 64, 64)
    return slope if falling else slope.mT


def depth_image(*, falling: bool) -> Image.Image:
    return Image.fromarray((depth_map(falling=falling)[0].numpy() * 65535).astype(np.uint16))


FOX: Values = {"prompt": "a red fox"}
SEA: Values = {"prompt": "a stormy sea at night"}
MEND: Values = {**FOX, "image": sunset(), "mask_image": disc_mask(), "height": 64, "width": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What makes a checkpoint of the kind what it is, and a row that it can draw."""

    pipeline: type
    unet: Values = field(default_factory=lambda: {"in_channels": 4})
    row: Values = field(default_factory=lambda: FOX)
    changes: dict[str, Values] = field(default_factory=lambda: {"prompt": SEA})
    """Each of them alone must be visible."""
    shape: tuple[int, int, int] = (64, 64, 3)


EVERY_KIND = {
    "sd": Kind(pipeline=StableDiffusionPipeline),
    "sd-safety": Kind(pipeline=StableDiffusionPipeline),
    "sd-inpaint": Kind(
        pipeline=StableDiffusionInpaintPipeline,
        unet={"in_channels": 9},
        row=MEND,
        changes={"prompt": SEA, "image": {"image": night()}, "strength": {"strength": 0.5}},
    ),
    "sd2": Kind(
        pipeline=StableDiffusionPipeline,
        unet={"in_channels": 4, "attention_head_dim": [4, 8], "use_linear_projection": True},
    ),
    "depth2img": Kind(
        pipeline=StableDiffusionDepth2ImgPipeline,
        unet={"in_channels": 5},
        row={**FOX, "image": sunset(), "depth_map": depth_map(falling=True)},
        changes={
            "prompt": SEA,
            "image": {"image": night()},
            "strength": {"strength": 0.5},
            "depth": {"depth_map": depth_map(falling=False)},
            "depth from the image": {"depth_map": None},
        },
    ),
    "variation": Kind(
        pipeline=StableDiffusionImageVariationPipeline,
        row={"image": sunset()},
        changes={"image": {"image": night()}},
    ),
    "safe": Kind(
        pipeline=StableDiffusionPipelineSafe,
        row={**FOX, "sld_warmup_steps": 0},
        changes={"prompt": SEA, "safe guidance": {"sld_warmup_steps": 10}},
    ),
    "sdxl": Kind(pipeline=StableDiffusionXLPipeline),
    "sdxl-inpaint": Kind(
        pipeline=StableDiffusionXLInpaintPipeline,
        unet={"in_channels": 9},
        row=MEND,
        changes={"prompt": SEA, "image": {"image": night()}, "strength": {"strength": 0.5}},
    ),
    "sdxl-refiner": Kind(
        pipeline=StableDiffusionXLImg2ImgPipeline,
        row={**FOX, "image": sunset(), "num_inference_steps": 8, "strength": 0.6},
        changes={"prompt": SEA, "image": {"image": night()}, "strength": {"strength": 0.3}},
    ),
    "upscale": Kind(
        pipeline=StableDiffusionUpscalePipeline,
        unet={"in_channels": 7, "num_class_embeds": 1000},
        row={**FOX, "image": sunset()},
        changes={"prompt": SEA, "image": {"image": night()}, "noise level": {"noise_level": 300}},
        shape=(256, 256, 3),
    ),
    "latent-upscale": Kind(
        pipeline=StableDiffusionLatentUpscalePipeline,
        unet={"in_channels": 8, "out_channels": 5},
        row={**FOX, "image": sunset()},
        changes={"prompt": SEA, "image": {"image": night()}},
        shape=(128, 128, 3),
    ),
    "ldm3d": Kind(pipeline=StableDiffusionLDM3DPipeline, shape=(64, 64, 4)),
    "ldm3d-4c": Kind(pipeline=StableDiffusionLDM3DPipeline, shape=(64, 64, 4)),
    "ldm3d-upscale": Kind(
        pipeline=StableDiffusionUpscaleLDM3DPipeline,
        unet={"in_channels": 8, "num_class_embeds": 1000},
        row={**FOX, "rgb": sunset(), "depth": depth_image(falling=True), "target_res": (128, 128)},
        changes={
            "prompt": SEA,
            "image": {"rgb": night()},
            "depth": {"depth": depth_image(falling=False)},
            "noise level": {"noise_level": 300},
        },
        shape=(128, 128, 4),
    ),
}


def load(kind: str) -> DiffusionPipeline:
    # diffusers finds every pipeline by its name but the one that it does not have.
    cls = StableDiffusionUpscaleLDM3DPipeline if kind == "ldm3d-upscale" else DiffusionPipeline
    pipeline = cls.from_pretrained(demo(kind), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline, StableDiffusionLDM3DPipeline):
        pipeline.image_processor = LDM3DImageProcessor()
    return pipeline


def draw(pipeline: DiffusionPipeline, seed: int = 0, **values: Any) -> np.ndarray:
    """Return one image, its channels between 0 and 1; a depth map is the fourth of them."""
    generator = torch.Generator().manual_seed(seed)
    values = {"num_inference_steps": 4, "output_type": "np", **values}
    output = pipeline(generator=generator, **values)
    channels = [output.rgb if hasattr(output, "rgb") else output.images, getattr(output, "depth", None)]
    return np.dstack([part[0] for part in channels if part is not None])


def paint(pipeline: DiffusionPipeline, prompt: str = "a red fox", seed: int = 0, **values: Any) -> np.ndarray:
    return draw(pipeline, seed, prompt=prompt, **values)


def weights(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_a_checkpoint_loads_as_the_pipeline_it_names(kind: str) -> None:
    """A folder loads like a published one, and has the traits by which a system is recognised."""
    pipeline = load(kind)

    expected = EVERY_KIND[kind]
    index = json.loads((demo(kind) / "model_index.json").read_text())
    config = json.loads((demo(kind) / "unet" / "config.json").read_text())
    assert type(pipeline) is expected.pipeline
    assert index["_class_name"] == expected.pipeline.__name__
    assert {name: config[name] for name in expected.unet} == expected.unet


def test_the_rest_of_what_tells_checkpoints_apart() -> None:
    """VAE channels and factors, optional components, and how a scheduler reads the UNet."""
    pipelines = {kind: load(kind) for kind in RANDOM_KINDS}

    channels = {kind: pipeline.vae.config.in_channels for kind, pipeline in pipelines.items()}
    predictions = {kind: pipeline.scheduler.config.prediction_type for kind, pipeline in pipelines.items()}
    unlike = {"ldm3d": 6, "ldm3d-4c": 4, "ldm3d-upscale": 4}
    assert channels == {kind: unlike.get(kind, 3) for kind in RANDOM_KINDS}
    others = {"sd2": "v_prediction", "upscale": "v_prediction", "latent-upscale": "original_sample"}
    assert predictions == {kind: others.get(kind, "epsilon") for kind in RANDOM_KINDS}
    assert [kind for kind, pipeline in pipelines.items() if pipeline.vae_scale_factor != 8] == ["upscale"]
    assert pipelines["upscale"].vae_scale_factor == 4
    assert pipelines["upscale"].config.max_noise_level == 350
    assert pipelines["sdxl-refiner"].config.requires_aesthetics_score
    assert pipelines["sdxl-refiner"].text_encoder is pipelines["sdxl-refiner"].tokenizer is None


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_whatever_a_row_says_is_visible(kind: str) -> None:
    """An image has contrast in every channel; another seed or input moves it by ten levels of 255."""
    pipeline = load(kind)
    expected = EVERY_KIND[kind]

    picture = draw(pipeline, **expected.row)
    others = {name: draw(pipeline, **expected.row | change) for name, change in expected.changes.items()}
    others["seed"] = draw(pipeline, seed=1, **expected.row)

    assert picture.shape == expected.shape
    assert picture.std(axis=(0, 1)).min() > 0.1
    assert np.mean((picture == 0) | (picture == 1)) < 0.3
    changes = {name: np.abs(picture - other).mean() for name, other in others.items()}
    assert min(changes.values()) > 10 / 255, changes


def test_the_safety_checker_looks_and_flags_nothing() -> None:
    """Its scores follow the image, and no score can pass the threshold."""
    pipeline = load("sd-safety")

    output = pipeline(["a red fox", "an owl"], num_inference_steps=2, output_type="np")

    assert output.nsfw_content_detected == [False, False]
    assert output.images.std() > 0.15
    assert pipeline.safety_checker.concept_embeds_weights.min() > 1.01


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_every_task_of_a_checkpoint_runs_on_its_components(kind: str) -> None:
    """img2img and inpaint are built from the components of text2img, and heed strength and mask."""
    components = load(kind).components
    img2img, inpaint = (editor(**components) for editor in EDITORS[kind])
    for pipeline in (img2img, inpaint):
        pipeline.set_progress_bar_config(disable=True)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))

    low = paint(img2img, image=sunset(), strength=0.3, num_inference_steps=8)
    high = paint(img2img, image=sunset(), strength=0.9, num_inference_steps=8)
    mended = paint(inpaint, image=sunset(), mask_image=mask, strength=0.9, height=64, width=64)

    assert np.abs(low - high).mean() > 0.05
    assert mended[:, :32].std() > 0.15


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_prompt_guidance_and_seed_change_the_image(kind: str) -> None:
    """What a row asks for is visible, by more than ten levels of 255 on average."""
    pipeline = load(kind)

    picture = paint(pipeline)
    others = {
        "prompt": paint(pipeline, prompt="a stormy sea at night"),
        "guidance": paint(pipeline, guidance_scale=2.0),
        "seed": paint(pipeline, seed=1),
        "negative": paint(pipeline, negative_prompt="blurry"),
    }

    changes = {name: np.abs(picture - other).mean() for name, other in others.items()}
    assert min(changes.values()) > 10 / 255, changes


@pytest.mark.parametrize("kind", ["sd", "sd-safety", "depth2img", "sdxl", "latent-upscale", "ldm3d-upscale"])
def test_one_seed_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """Two builds agree in every byte of their weights; another seed does not."""
    build_demo_model(tmp_path / "first", kind)
    build_demo_model(tmp_path / "second", kind)
    build_demo_model(tmp_path / "other", kind, seed=1)

    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert weights(tmp_path / "first").keys() == weights(tmp_path / "other").keys()
    assert weights(tmp_path / "first") != weights(tmp_path / "other")


def test_building_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    """A build draws from its own seed."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    build_demo_model(tmp_path / "model")

    assert torch.equal(torch.rand(3), expected)


def test_a_folder_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    """Whoever looks for it meanwhile finds nothing, and a build that breaks off leaves nothing."""
    folder = tmp_path / "new" / "model"

    with all_or_nothing(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / "model_index.json").touch()
        existed_before_the_end = folder.exists()
    with pytest.raises(OSError, match="disk full"):
        break_off(tmp_path / "new" / "other")

    assert not existed_before_the_end
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        *("new", "new/model", "new/model/model_index.json")
    ]


def break_off(folder: Path) -> None:
    """Begin to write a folder."""
    with all_or_nothing(folder) as unfinished:
        unfinished.mkdir()
        raise OSError("disk full")


def test_a_build_that_is_refused_ends_with_the_code_of_a_spec_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program that builds says so on its last line, and builds the others."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()

    code = build_program("0", "sd", str(tmp_path / "used"), "sd", str(tmp_path / "new"))

    assert code == SpecError.exit_code
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "new" / "model_index.json").is_file()


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    """Nothing of the user's is overwritten, and nothing is left behind."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")

    for build in (build_demo_model, break_off):
        # Nothing is begun: what breaks off at once would raise its own error.
        with pytest.raises(SpecError, match="already exists"):
            build(folder)

    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """A folder made beforehand is no obstacle."""
    build_demo_model(tmp_path / "model")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model_index.json").is_file()


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    """A typo is answered by the list."""
    with pytest.raises(SpecError, match="'sdlx'; choose one of sd, sd-safety, "):
        build_demo_model(tmp_path / "model", "sdlx")
    with pytest.raises(SpecError, match="'sdlx'; choose one of sd, sd-safety, "):
        demo_folder("sdlx")


def test_every_kind_has_a_builder() -> None:
    """The names that need no torch and the builders that do are one list, which is tested whole."""
    assert tuple(BUILDERS) == RANDOM_KINDS
    assert tuple(EVERY_KIND) == RANDOM_KINDS


@pytest.mark.parametrize("text", ["naïve 雪 🦊", "\x00\x7f", "the longest of evenings, in painted light"])
def test_the_tokenizer_loses_no_byte(text: str) -> None:
    """Every text has tokens of its own, whatever its language."""
    tokenizer = load("sd").tokenizer

    tokens = tokenizer(text, add_special_tokens=False).input_ids

    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")


def test_the_cache_knows_its_folders_without_torch(tmp_path: Path) -> None:
    """A plan can name a demo checkpoint's folder at once."""
    code = (
        "import sys; from models.demo_cache import demo_folder; print(demo_folder('sd'));"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert answer.stdout.splitlines() == [str(demo_folder("sd")), "[]"]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DARKROOM_CACHE names the cache; otherwise it is `darkroom` in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DARKROOM_CACHE", raising=False)
    ordinary = demo_folder("sdxl")
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "own"))
    own = demo_folder("sdxl")

    assert ordinary.parent == tmp_path / "xdg" / "darkroom"
    assert own == tmp_path / "own" / ordinary.name
    assert own.name.startswith("demo-sdxl-")


def test_builders_at_once_end_with_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need a checkpoint at the same moment all get it, and leave no scraps."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))

    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(demo_checkpoint, ["shapes"] * 4))

    assert [*tmp_path.iterdir()] == [demo_folder("shapes")] == [*folders]
    assert contents(demo_folder("shapes") / "unet") == contents(trained_models.FOLDER / "shapes" / "unet")


def overtaken(folder: Path) -> None:
    """Write a folder, while another one is quicker."""
    with all_or_nothing(folder) as late:
        (late / "late").mkdir(parents=True)
        with all_or_nothing(folder) as first:
            (first / "first").mkdir(parents=True)


def test_of_two_builders_the_first_to_end_wins(tmp_path: Path) -> None:
    """The other one is refused, and what it has written is gone."""
    folder = tmp_path / "model"

    with pytest.raises(SpecError, match="already exists"):
        overtaken(folder)

    assert sorted(tmp_path.rglob("*")) == [folder, folder / "first"]


@pytest.mark.parametrize("kind", trained_models.KINDS)
def test_a_trained_checkpoint_has_its_own_components_and_the_bases_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also where an empty folder has its name: that is none."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    demo_folder(kind).mkdir()

    folder = demo_checkpoint(kind)

    index = json.loads((folder / "model_index.json").read_text())
    names = {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == names
    for name in names:
        own = trained_models.FOLDER / kind / name
        source = own if own.exists() else trained_models.FOLDER / trained_models.KINDS[0] / name
        assert contents(folder / name) == contents(source), name


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their names in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def install_another_torch(folder: Path) -> None:
    (folder / "torch-99.dist-info").mkdir()
    (folder / "torch-99.dist-info" / "METADATA").write_text("Name: torch\nVersion: 99\n")


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        (lambda folder: None, []),
        (lambda folder: change(folder / "demo/random_checkpoints.py"), ["sd"]),
        (lambda folder: change(folder / "demo/small_components.py"), ["sd"]),
        (install_another_torch, ["sd"]),
        (lambda folder: change(folder / "models/shapes/vae.json"), ["shapes", "shapes-ldm3d"]),
        (lambda folder: change(folder / "models/shapes-ldm3d/vae.json"), ["shapes", "shapes-ldm3d"]),
        (
            lambda folder: (folder / "models/shapes/vae.json").rename(folder / "models/shapes/unet.json"),
            ["shapes", "shapes-ldm3d"],
        ),
    ],
    ids=["nothing", "builder", "components", "torch", "base", "sibling", "name"],
)
def test_what_decides_a_checkpoints_content_decides_its_folder_in_the_cache(
    tmp_path: Path, changed: Callable[[Path], None], kinds: list[str]
) -> None:
    """No checkpoint of an older builder, library or training is used. Told by a copy of the packages."""
    for name in ("demo", "models"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).glob("*.py"):
            shutil.copy(path, tmp_path / name)
    (tmp_path / "schemas").symlink_to(ROOT / "schemas")
    for kind in trained_models.KINDS:
        (tmp_path / "models" / kind).mkdir()
        (tmp_path / "models" / kind / "vae.json").write_text(kind)
    before = cached_names(tmp_path)

    changed(tmp_path)

    after = cached_names(tmp_path)
    assert [kind for kind in before if before[kind] != after[kind]] == kinds


def cached_names(packages: Path) -> dict[str, str]:
    """The names of some checkpoints' folders in the cache, by these packages."""
    kinds = ("sd", "shapes", "shapes-ldm3d")
    code = f"from models.demo_cache import demo_folder; print(*[demo_folder(kind).name for kind in {kinds}])"
    env = os.environ | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    names = subprocess.run(
        [sys.executable, "-c", code], cwd=packages, env=env, capture_output=True, text=True, check=True
    )
    return dict(zip(kinds, names.stdout.split(), strict=True))


def test_an_unknown_kind_is_left_to_whoever_reads_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message names the model; the checkpoints that are known are built before."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    kinds = ("sd3", "shapes", "shapes")

    build_demo_checkpoints([ModelSpec(checkpoint=f"demo:{kind}") for kind in kinds])

    assert [*tmp_path.iterdir()] == [demo_folder("shapes")]


def test_missing_checkpoints_are_built_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there stay as they are; nobody pays for torch's imports twice, or for nothing."""
    cached = demo("sd")
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    there = shutil.copytree(cached, demo_folder("sd")) / "model_index.json"
    built = there.stat().st_mtime_ns

    build_missing(["sd", "sd2", "upscale"])
    monkeypatch.setattr(subprocess, "run", None)
    build_missing(["sd", "sd2"])

    assert sorted(tmp_path.iterdir()) == sorted(demo_folder(kind) for kind in ("sd", "sd2", "upscale"))
    assert there.stat().st_mtime_ns == built


def test_the_demo_meets_every_system() -> None:
    """Each system that a new one would stand beside has a route of configs/demo.yaml, and rows."""
    spec = load_spec(ROOT / "configs" / "demo.yaml")
    build_missing(model.checkpoint.removeprefix("demo:") for model in spec.models.values())
    families = {name: read_card(name, model).family for name, model in spec.models.items()}
    tasks = {row["task"] for row in demo_rows()}

    steps = {step for task in tasks for step in (task, *spec.routes[task].then)}
    met = {(families[spec.routes[step].model], spec.task_of(step)) for step in steps}

    # The same pipelines on other checkpoints.
    alike = {("sd-inpaint", "inpaint"), ("sdxl", "img2img"), ("sdxl", "inpaint"), ("sdxl-inpaint", "inpaint")}
    alike |= {("safe", "safe"), ("safe", "text2img")}
    assert {(system.family, system.task) for system in SYSTEMS} - met == alike


def test_a_cache_that_cannot_be_written_is_the_specs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which folder and why, and no builder is started for it."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(subprocess, "run", None)

    with pytest.raises(SpecError, match=r"cannot build demo:sd as .*/file/demo-sd-.*: FileExistsError"):
        demo_checkpoint("sd")


def test_a_builder_that_fails_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the process that builds; here it is a shell."""
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho Traceback >&2\necho 'OSError: no space left' >&2\nexit 1\n")
    failing.chmod(0o700)
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(failing))

    with pytest.raises(SpecError, match=r"cannot build demo:sd as .*: OSError: no space left$"):
        demo_checkpoint("sd")


def test_the_demos_rows_are_the_ones_that_the_script_draws(tmp_path: Path) -> None:
    """The committed file is current, small, and written the same each time."""
    write_rows(tmp_path / "first.parquet")
    write_rows(tmp_path / "second.parquet")

    committed, fresh = (
        pq.read_table(path).drop_columns(list(IMAGE_COLUMNS)) for path in (ROWS, tmp_path / "first.parquet")
    )
    assert committed.equals(fresh)
    assert images_in(ROWS).keys() == images_in(tmp_path / "first.parquet").keys()
    for name, image in images_in(tmp_path / "first.parquet").items():
        stored = images_in(ROWS)[name]
        assert (stored.mode, stored.size) == (image.mode, image.size), name
        # Other versions of Pillow may draw an edge otherwise.
        assert np.mean(np.asarray(stored) != np.asarray(image)) < 0.02, name
    assert pq.read_schema(ROWS).equals(SCHEMA, check_metadata=True)
    assert ROWS.stat().st_size < 100_000
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()


def images_in(rows: Path) -> dict[tuple[str, str], Image.Image]:
    """The images of a file's rows that can be read, by row and column."""
    return {
        (row["row_id"], column): Image.open(io.BytesIO(row[column]["bytes"]))
        for row in pq.read_table(rows).to_pylist()
        for column in IMAGE_COLUMNS
        if row[column] and readable(row[column]["bytes"])
    }


def test_one_row_of_the_demo_is_broken() -> None:
    """Every image of the demo's rows can be read but the one that says it cannot."""
    pictures = [
        (row["row_id"], row[column]["bytes"])
        for row in demo_rows()
        for column in IMAGE_COLUMNS
        if row[column]
    ]

    assert {row_id for row_id, png in pictures if not readable(png)} == {BROKEN}


def readable(png: bytes) -> bool:
    try:
        Image.open(io.BytesIO(png)).load()
    except OSError:
        return False
    return True
