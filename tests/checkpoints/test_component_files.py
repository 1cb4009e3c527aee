"""A checkpoint's components as files: which weights are a component's, and which components are the same."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from actors.checkpoints.component_files import (
    ALLOW_PICKLES,
    ComponentFiles,
    LocalFile,
    components_with_weights,
    files_in,
    weights_of,
)
from actors.checkpoints.model_files import bytes_shared
from schemas.spec.job_spec import ModelSpec

BLOCK = 1 << 20
"""The bytes that are read at a time to hash a file."""


def files_of(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """The folder with these files."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names_of_weights(folder: Path, variant: str | None = None) -> list[str]:
    """The names of the UNet's weight files."""
    weights = weights_of(files_in(folder), "unet", variant)
    return [file.path.name for file in weights if isinstance(file, LocalFile)]


def component(folder: Path, *, settings: Mapping[str, object], weights: Sequence[bytes]) -> ComponentFiles:
    """A VAE with this configuration and these weights, in as many files."""
    contents = {f"vae/w-{number:05d}.safetensors": content for number, content in enumerate(weights)}
    index = json.dumps({"vae": ["diffusers", "AutoencoderKL"]}).encode()
    config = json.dumps(settings).encode()
    files_of(folder, {"model_index.json": index, "vae/config.json": config, **contents})
    (found,) = components_with_weights(files_in(folder), None)
    return found


def test_a_component_that_the_checkpoint_does_not_use_is_none(tmp_path: Path) -> None:
    """Though its files are there: diffusers does not load it."""
    component(tmp_path, settings={}, weights=[b"x"])
    index = {"vae": [None, None], "unet": "x", "_class_name": "StableDiffusionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    assert components_with_weights(files_in(tmp_path), None) == []


SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
VARIANT_SHARDS = [f"model.fp16-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("stored", "variant", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.safetensors"], "fp16", ["model.safetensors"]),
        (["model.safetensors", "model.bin"], "fp16", ["model.safetensors"]),
        ([*SHARDS, *VARIANT_SHARDS], None, SHARDS),
        ([*SHARDS, *VARIANT_SHARDS], "fp16", VARIANT_SHARDS),
        (["model.fp16.safetensors"], None, []),
        (["model.bin"], None, []),
        (["model.safetensors.index.json"], None, []),
    ],
)
def test_a_components_weights_are_those_that_diffusers_loads(
    tmp_path: Path, stored: list[str], variant: str | None, chosen: list[str]
) -> None:
    """The variant's, else the plain ones, in the order of their names, and none of another component."""
    others = ["text_encoder/model.safetensors", "old_unet/model.safetensors", "unet/old/model.safetensors"]
    # Files are found in the order in which they were made, or in any other one.
    files_of(tmp_path, dict.fromkeys([*others, *(f"unet/{name}" for name in stored[::-1])], b"x"))
    files = {name: LocalFile(tmp_path / name) for name in [*others, *(f"unet/{name}" for name in stored)]}

    assert names_of_weights(tmp_path, variant) == chosen
    assert weights_of(dict(reversed(files.items())), "unet", variant) == weights_of(files, "unet", variant)


@pytest.mark.parametrize(("allowed", "chosen"), [("0", []), ("", []), ("1", ["model.bin"])])
def test_pickles_are_weights_only_where_the_operator_says_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, chosen: list[str]
) -> None:
    """And never where there are safetensors."""
    monkeypatch.setenv(ALLOW_PICKLES, allowed)
    files_of(tmp_path / "old", {"unet/model.bin": b"x"})
    files_of(tmp_path / "both", {"unet/model.bin": b"x", "unet/model.safetensors": b"x"})

    assert names_of_weights(tmp_path / "old") == chosen
    assert names_of_weights(tmp_path / "both") == ["model.safetensors"]


def test_components_are_looked_up_by_what_they_are_not_by_how_they_were_saved(tmp_path: Path) -> None:
    """The version that saved them does not count; a number that changes images does."""
    saved = {"_diffusers_version": "0.1", "_name_or_path": "a", "dtype": "float32", "torch_dtype": "float32"}
    settings = {"scaling_factor": 0.18, "sizes": [1, 2]}
    one = component(tmp_path / "one", settings=settings | saved, weights=[b"x"])
    same = component(tmp_path / "same", settings=dict(reversed(settings.items())), weights=[b"y"])
    scaled = component(tmp_path / "scaled", settings=settings | {"scaling_factor": 0.13}, weights=[b"x"])
    longer = component(tmp_path / "longer", settings=settings, weights=[b"xy"])

    assert one.lookup_key() == same.lookup_key()
    assert len({each.lookup_key() for each in (one, scaled, longer)}) == 3
    assert one.weights_hash() != same.weights_hash()
    assert one.weights_hash() == scaled.weights_hash()


def test_weights_are_told_apart_by_all_their_files_and_all_their_bytes(tmp_path: Path) -> None:
    """Also by those beyond the block that is read at a time."""
    first = component(tmp_path / "a", settings={}, weights=[b"1", b"2"])
    second = component(tmp_path / "b", settings={}, weights=[b"1", b"3"])
    large = files_of(tmp_path, {"one": b"0" * BLOCK + b"1", "two": b"0" * BLOCK + b"2"})

    assert first.weights_hash() != second.weights_hash()
    assert first.size_bytes == 2
    for name in ("one", "two"):
        content = (large / name).read_bytes()
        assert LocalFile(large / name).sha256() == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_written_again_has_another_hash(tmp_path: Path) -> None:
    """Though it is as long as before."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    before = LocalFile(path).sha256()
    path.write_bytes(b"new")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))

    assert LocalFile(path).sha256() == hashlib.sha256(b"new").hexdigest() != before


def test_only_a_hash_is_taken_for_one(tmp_path: Path) -> None:
    """A link to a blob that is named otherwise, as small files are in the Hub's cache, is read."""
    files_of(tmp_path, {"blobs/9fcc": b"x"})
    (tmp_path / "link").symlink_to(tmp_path / "blobs" / "9fcc")

    assert LocalFile(tmp_path / "link").sha256() == hashlib.sha256(b"x").hexdigest()


def test_models_share_what_they_would_load_as_the_same(tmp_path: Path) -> None:
    """Of the same dtype and the same content: of three checkpoints with one VAE, two VAEs are saved."""
    weights = {"a": b"same", "b": b"same", "c": b"same", "other": b"else"}
    folders = {name: str(tmp_path / name) for name in weights}
    for name, content in weights.items():
        component(tmp_path / name, settings={}, weights=[content])
    three = {name: ModelSpec(checkpoint=folders[name]) for name in "abc"}
    half = {"half": ModelSpec(checkpoint=folders["a"], dtype="float16")}
    other = {"other": ModelSpec(checkpoint=folders["other"])}
    missing = {"missing": ModelSpec(checkpoint="studio/not-here")}

    assert bytes_shared(three) == 2 * len(b"same")
    assert bytes_shared(three | half | other | missing) == 2 * len(b"same")
    assert bytes_shared({"a": three["a"], **half}) == 0
    assert bytes_shared({"a": three["a"], **other}) == 0
