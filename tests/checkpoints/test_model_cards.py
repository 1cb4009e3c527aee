"""What a checkpoint's card says follows from its files, and from each of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from actors.checkpoints.model_cards import read_card
from actors.checkpoints.weights_check import check_weights
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ModelCard
from tests.support.checkpoints import NO_WEIGHTS, paper_checkpoint

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))


def change_json(folder: Path, name: str, changes: Mapping[str, Any]) -> None:
    """Change keys of a JSON file, which is made if it is not there."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def card_of(folder: Path) -> ModelCard:
    return read_card("sd", ModelSpec(checkpoint=str(folder)))


def other_bytes(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1] + b"]")


def another_name(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "other.safetensors")


def a_file_more(folder: Path) -> None:
    (folder / "unet" / "notes.txt").write_text("x")


@pytest.mark.parametrize("change", [other_bytes, another_name, a_file_more])
def test_a_folders_revision_tells_its_files_their_names_and_their_contents(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """By it a job's parts are told from those of another checkpoint; where the folder is does not count."""
    here, there = (paper_checkpoint(tmp_path / name) for name in ("here", "there"))
    before = card_of(here).revision
    assert before == card_of(there).revision

    change(here)

    assert card_of(here).revision != before


def a_readme(folder: Path) -> None:
    (folder / "README.md").write_text("x")


def a_checkpoint_of_the_training(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.bin").write_bytes(b"x")


@pytest.mark.parametrize("change", [a_readme, a_checkpoint_of_the_training])
def test_files_that_no_pipeline_is_loaded_from_do_not_count(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """A trainer leaves many gigabytes beside its result."""
    folder = paper_checkpoint(tmp_path / "sd")
    before = card_of(folder)

    change(folder)

    assert card_of(folder).revision == before.revision
    assert [*before.files] == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        VAE,
    ]


def test_one_byte_in_the_midst_of_the_weights_is_another_checkpoint(tmp_path: Path) -> None:
    """A fine-tuned UNet has the size, and often both ends, of the one that it began with."""
    folder = paper_checkpoint(tmp_path / "sd")
    (folder / UNET).write_bytes(bytes(300_000))
    before = card_of(folder)

    (folder / UNET).write_bytes(bytes(150_000) + b"x" + bytes(149_999))

    after = card_of(folder)
    assert after.revision != before.revision
    assert [name for name in after.files if after.files[name] != before.files[name]] == [UNET]


def test_the_size_of_a_checkpoint_is_that_of_the_weights_that_are_loaded(tmp_path: Path) -> None:
    """Not of a trainer's checkpoints beside them, of another variant, or of a file with all of them."""
    folder = paper_checkpoint(tmp_path / "sd")
    before = card_of(folder).weight_bytes
    others = ("checkpoint-500/model.safetensors", "checkpoint-500/unet/model.safetensors")
    for name in (*others, "checkpoint-500/config.json", "unet/model.fp16.safetensors", "all.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))

    card = card_of(folder)

    assert before == card.weight_bytes == sum((folder / name).stat().st_size for name in (UNET, VAE)) > 0


@pytest.mark.parametrize(
    ("sample_size", "size"),
    [(64, (512, 512)), ([96, 64], (768, 512)), (1, (8, 8)), (1024, (8192, 8192)), (0, None), (1025, None)],
)
def test_a_default_size_is_that_of_the_unet_in_pixels(
    tmp_path: Path, sample_size: Any, size: tuple[int, int] | None
) -> None:
    """Height first, from one pixel of latents to the largest side that is allowed."""
    folder = paper_checkpoint(tmp_path / "sd")
    change_json(folder, "unet/config.json", {"sample_size": sample_size})

    if size is None:
        with pytest.raises(SpecError, match="is not from 1 to 8192"):
            card_of(folder)
    else:
        card = card_of(folder)
        assert (card.height, card.width) == size


@pytest.mark.parametrize(
    ("pipeline", "num_layers", "max_clip_skip"),
    [
        ("StableDiffusionPipeline", [12], 12),
        ("StableDiffusionPipeline", [None], 12),
        ("StableDiffusionPipeline", [], 32),
        ("StableDiffusionPipeline", [50], 32),
        ("StableDiffusionXLPipeline", [12, 32], 11),
        ("StableDiffusionXLPipeline", [32, 12], 11),
    ],
)
def test_clip_skip_may_skip_the_layers_of_the_encoder_that_has_the_fewest(
    tmp_path: Path, pipeline: str, num_layers: list[int | None], max_clip_skip: int
) -> None:
    """XL counts from the last layer but one."""
    folder = paper_checkpoint(tmp_path / "sd", pipeline=pipeline)
    for name, layers in zip(("text_encoder", "text_encoder_2"), num_layers, strict=False):
        change_json(folder, "model_index.json", {name: ["transformers", "CLIPTextModel"]})
        change_json(folder, f"{name}/config.json", {} if layers is None else {"num_hidden_layers": layers})

    assert card_of(folder).max_clip_skip == max_clip_skip


def test_a_checkpoint_has_a_checker_if_it_has_both_of_its_parts(tmp_path: Path) -> None:
    """The checker, and what prepares images for it."""
    folder = paper_checkpoint(tmp_path / "sd")
    parts = {"safety_checker": "StableDiffusionSafetyChecker", "feature_extractor": "CLIPImageProcessor"}
    has_checker = []
    for name, cls in parts.items():
        has_checker.append(card_of(folder).has_safety_checker)
        change_json(folder, "model_index.json", {name: ["transformers", cls]})
    has_checker.append(card_of(folder).has_safety_checker)

    assert has_checker == [False, False, True]


@pytest.mark.parametrize(("stored", "highest"), [({"max_noise_level": 20}, 20), ({}, 350)])
def test_the_highest_noise_level_is_the_checkpoints_own(
    tmp_path: Path, stored: Mapping[str, int], highest: int
) -> None:
    """Without one it is that of the published upscaler."""
    folder = paper_checkpoint(tmp_path / "up", pipeline="StableDiffusionUpscalePipeline", channels=7)
    change_json(folder, "model_index.json", stored)

    assert card_of(folder).max_noise_level == highest


@pytest.mark.parametrize("aesthetics", [True, False])
def test_a_refiner_is_told_from_a_base_by_what_it_asks_for(tmp_path: Path, aesthetics: bool) -> None:
    """Its pipeline is called the same."""
    folder = paper_checkpoint(tmp_path / "xl", pipeline="StableDiffusionXLImg2ImgPipeline")
    change_json(folder, "model_index.json", {"requires_aesthetics_score": aesthetics})

    assert card_of(folder).family == ("sdxl-refiner" if aesthetics else "sdxl")


@pytest.mark.parametrize(("channels", "num_layers"), [(4, 0), (4, -1), (4, "many"), (7, 12)])
def test_a_checkpoint_that_is_none_that_darkroom_runs_is_refused(
    tmp_path: Path, channels: int, num_layers: Any
) -> None:
    """A UNet of other channels, and a text encoder without layers."""
    folder = paper_checkpoint(tmp_path / "sd", channels=channels)
    change_json(folder, "model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]})
    change_json(folder, "text_encoder/config.json", {"num_hidden_layers": num_layers})

    says = "darkroom runs" if channels == 7 else "its text_encoder has"
    with pytest.raises(SpecError, match=says):
        card_of(folder)


@pytest.mark.parametrize("checkpoint", ["/no/such", "./no/such", "../no", "~/no/such/folder"])
def test_what_can_only_be_a_folder_is_not_looked_for_on_the_hub(checkpoint: str) -> None:
    """The message says that there is no such folder."""
    with pytest.raises(SpecError, match=r"the folder \S+ does not exist"):
        read_card("sd", ModelSpec(checkpoint=checkpoint))


# Weights that are not there, or not as they should be.


def refusal(folder: Path, *, with_checker: bool = True) -> str:
    """The message with which the check of the weights refuses a folder; empty if it does not."""
    try:
        check_weights("sd", ModelSpec(checkpoint=str(folder)), with_checker=with_checker)
    except SpecError as error:
        return str(error)
    return ""


def stored_as(folder: Path, names: list[str]) -> Path:
    """A paper checkpoint whose weights are in these files instead."""
    paper_checkpoint(folder)
    for weights in (UNET, VAE):
        (folder / weights).unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(NO_WEIGHTS)
    return folder


def test_weights_that_are_half_copied_are_found(tmp_path: Path) -> None:
    """Of any component, before a machine is paid for."""
    folder = paper_checkpoint(tmp_path / "sd")
    whole = refusal(folder)
    (folder / VAE).write_bytes((100).to_bytes(8, "little") + b"{}")

    halved = refusal(folder)

    assert whole == ""
    assert f"{VAE} is damaged, half copied, or a Git LFS pointer" in halved


def test_quantised_weights_are_found(tmp_path: Path) -> None:
    """diffusers takes them for weights. Whole numbers that are no weights may be in any file."""
    folder = paper_checkpoint(tmp_path / "sd")
    save_file({"embeddings.position_ids": np.arange(4)}, folder / VAE)
    positions = refusal(folder)
    save_file({"conv_out.weight": np.ones((4, 4), np.int8)}, folder / VAE)

    quantised = refusal(folder)

    assert positions == ""
    assert f"{VAE} cannot be used: its tensor conv_out.weight has the type I8" in quantised


def test_a_checker_needs_weights_only_if_it_is_used(tmp_path: Path) -> None:
    """Switched off, it is not loaded."""
    folder = paper_checkpoint(tmp_path / "sd")
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    change_json(folder, "model_index.json", checker)
    absent = refusal(folder)
    change_json(folder, "safety_checker/config.json", {})

    assert "has no files of its safety_checker" in absent
    assert "has no .safetensors in safety_checker" in refusal(folder)
    assert refusal(folder, with_checker=False) == ""


@pytest.mark.parametrize(
    ("names", "says", "says_not"),
    [
        (
            ["unet/model.ema.safetensors", "unet/model.fp16.safetensors", "vae/model.fp16.safetensors"],
            "set `variant: fp16`",
            "ema",
        ),
        (["unet/model.ema.safetensors", "vae/model.fp16.safetensors"], "save it again", "variant"),
        (
            ["unet/model.fp16-00001-of-00002.safetensors", "vae/model.fp16.safetensors"],
            "set `variant: fp16`",
            "00001",
        ),
        (["unet/model.bin", "vae/model.bin"], "DARKROOM_ALLOW_PICKLES=1", "variant"),
        (["unet/model.bin"], "save it again", "DARKROOM_ALLOW_PICKLES"),
        (["unet/model.bin", "vae_old/model.bin"], "save it again", "DARKROOM_ALLOW_PICKLES"),
        (["unet/model.ema.safetensors", "vae_old/model.ema.safetensors"], "save it again", "variant"),
    ],
)
def test_the_way_out_that_is_named_works_for_every_component(
    tmp_path: Path, names: list[str], says: str, says_not: str
) -> None:
    """A variant that one of them lacks is not named, nor are pickles that one of them lacks."""
    message = refusal(stored_as(tmp_path / "checkpoint", names))

    assert "has no .safetensors in unet, vae;" in message
    assert says in message.partition("because they can run code: ")[2]
    assert says_not not in message.partition("because they can run code: ")[2]
