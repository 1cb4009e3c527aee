"""Facts about checkpoints that nobody should trust: the plan refuses them, and loads nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.checkpoints.model_cards import read_card
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from tests.support.checkpoints import demo, paper_checkpoint
from tests.support.in_process import Record, job_spec, write_rows


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"unet": ["os", "system"]}, "asks for os.system as its unet"),
        ("model_index.json", {"unet": ["my_unet", "Unet"]}, "asks for my_unet.Unet as its unet"),
        ("model_index.json", {"unet": ["diffusers2", "Unet"]}, "asks for diffusers2.Unet as its unet"),
        (
            "model_index.json",
            {"_class_name": ["pipeline", "Mine"]},
            "is a ['pipeline', 'Mine']; darkroom runs",
        ),
        ("model_index.json", {"../../etc": ["diffusers", "AutoencoderKL"]}, "for '../../etc' where"),
        ("model_index.json", {"scheduler": "x"}, "model_index.json has 'x' for 'scheduler'"),
        ("model_index.json", {"scheduler": ["diffusers"]}, "has ['diffusers'] for 'scheduler'"),
        ("model_index.json", {"max_noise_level": "x"}, "is damaged"),
        ("unet/config.json", {"sample_size": 10**12}, "8000000000000 is not from 1 to 8192"),
        ("unet/config.json", {"sample_size": -8}, "-64 is not from 1 to 8192"),
        ("vae/config.json", {"block_out_channels": [1] * 100_000}, "100000 is not from 1 to 8"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "is not from 1 to 100000"),
    ],
)
def test_a_hostile_checkpoint_is_refused_by_its_configuration(
    tmp_path: Path, file: str, changes: Record, says: str
) -> None:
    """Before anything of it is loaded: classes of others, code of its own, sizes beyond all memory."""
    folder = paper_checkpoint(tmp_path / "sd")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    with pytest.raises(SpecError) as raised:
        read_card("sd", ModelSpec(checkpoint=str(folder)))

    assert says in str(raised.value)


def test_a_checkpoint_s_configuration_that_nests_for_ever_is_refused(tmp_path: Path) -> None:
    """Python's reader of JSON gives up on it in a way of its own."""
    folder = paper_checkpoint(tmp_path / "sd")
    (folder / "unet" / "config.json").write_text("[" * 200_000)

    with pytest.raises(SpecError, match=r"no readable unet/config\.json"):
        read_card("sd", ModelSpec(checkpoint=str(folder)))


def a_link_to_what_is_not_there(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../../../blobs/abc")


def a_link_to_itself(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").symlink_to("config.json")


def a_pipe(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer" / "tokenizer_config.json")


def a_pipe_for_an_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    os.mkfifo(folder / "model_index.json")


def an_endless_file(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    (folder / "unet" / "config.json").symlink_to("/dev/zero")


def gigabytes(folder: Path) -> None:
    with (folder / "model_index.json").open("wb") as file:
        file.truncate(5 << 30)


def megabytes_of_spaces(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_bytes(index.read_bytes() + b" " * (17 << 20))


def no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            a_link_to_what_is_not_there,
            "safetensors is a broken link; copy folders of the Hub's",
        ),
        (a_link_to_itself, "config.json is a broken link"),
        (a_pipe, "tokenizer_config.json is neither a file nor a folder"),
        (a_pipe_for_an_index, "has no readable model_index.json"),
        (an_endless_file, "unet/config.json is neither a file nor a folder"),
        (gigabytes, "has no readable model_index.json"),
        (megabytes_of_spaces, "has no readable model_index.json"),
        (no_tokenizer, "has no files of its tokenizer, which its model_index.json names"),
    ],
)
def test_a_checkpoint_that_is_copied_by_half_or_reads_for_ever_is_refused(
    tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    """By the plan: a worker would wait for it, or fail every row of its own."""
    shutil.copytree(demo("sd"), tmp_path / "sd")
    change(tmp_path / "sd")
    rows = write_rows(tmp_path / "in.parquet", [{"prompt": "a fox"}])
    spec = job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": str(tmp_path / "sd")}})

    with pytest.raises(SpecError) as raised:
        make_survey(spec)

    assert says in str(raised.value)
