"""A plan takes the embeddings that diffusers loads for a checkpoint, and refuses those that it does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from actors.checkpoints.adapters.embedding_files import find_embeddings
from actors.checkpoints.component_files import files_in
from actors.checkpoints.model_cards import read_card
from actors.checkpoints.model_files import shareable_components
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.storage.stores import Stores
from models.clip_tokenizer import write_tokenizer
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import EmbeddingFile
from schemas.systems.system_table import SYSTEMS
from tests.support.checkpoints import demo
from tests.support.pipelines.published_files import single_file, small_pipeline

WIDTH = 32
Shapes = dict[str, tuple[int, ...]]
ONE: Shapes = {"emb_params": (1, WIDTH)}


def write(file: Path, shapes: Shapes, dtype: Any = np.float16) -> Path:
    save_file({name: np.zeros(shape, dtype) for name, shape in shapes.items()}, file)
    return file


def find(checkpoint: str, **files: Any) -> dict[str, EmbeddingFile]:
    model = ModelSpec.model_validate({"checkpoint": checkpoint, "embeddings": files})
    return find_embeddings("m", model, read_card("m", model), Stores())


def refusal(checkpoint: str, **files: Any) -> str:
    with pytest.raises(SpecError) as error:
        find(checkpoint, **files)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "shapes", "vectors"),
    [
        ("sd", {"<cat-toy>": (1, WIDTH)}, {"text_encoder": 1}),
        ("sd", {"emb_params": (8, WIDTH)}, {"text_encoder": 8}),
        ("depth2img", {"emb_params": (48,)}, {"text_encoder": 1}),
        ("sdxl", {"clip_g": (3, WIDTH), "clip_l": (2, WIDTH)}, {"text_encoder": 2, "text_encoder_2": 3}),
        (
            "sdxl",
            {"text_encoders_0": (2, WIDTH), "text_encoders_1": (3, WIDTH)},
            {"text_encoder": 2, "text_encoder_2": 3},
        ),
        ("sdxl-refiner", {"clip_g": (3, WIDTH), "clip_l": (2, 9)}, {"text_encoder_2": 3}),
        ("sdxl-refiner", {"emb_params": (4, WIDTH)}, {"text_encoder_2": 4}),
    ],
)
def test_each_published_form_has_its_vectors_by_text_encoder(
    kind: str, shapes: Shapes, vectors: dict[str, int], tmp_path: Path
) -> None:
    """The refiner has only XL's second text encoder."""
    demo(kind)
    file = write(tmp_path / "x.safetensors", shapes)

    found = find(f"demo:{kind}", **{"<x>": str(file)})

    assert {name: each.num_vectors for name, each in found["<x>"].vectors.items()} == vectors
    assert {each.tensor for each in found["<x>"].vectors.values()} <= shapes.keys()


@pytest.mark.parametrize(
    ("kind", "shapes", "says"),
    [
        ("sd", {"x": (2, 768)}, "it was made for Stable Diffusion 1.x: the vectors of x have 768 numbers"),
        ("sd", {"x": (2, 31)}, "the vectors of x have 31 numbers, and the embeddings of the text_encoder 32"),
        ("sd", {"clip_g": (1, WIDTH), "clip_l": (1, WIDTH)}, "it was made for XL: it has clip_g, clip_l"),
        ("sd", {"x": (1, WIDTH), "y": (1, WIDTH)}, "a single tensor, and this file has 2 tensors: x, y"),
        ("sd", {f"unet.{i}.lora_A.weight": (1, WIDTH) for i in range(3)}, "it is a LoRA; name it in `loras`"),
        ("sd", {}, "a single tensor, and this file has 0 tensors: none"),
        ("sd", {"x": (0, WIDTH)}, "has the shape (0, 32)"),
        ("sd", {"x": (1, 1, WIDTH)}, "has the shape (1, 1, 32)"),
        (
            "sdxl",
            {"x": (1, WIDTH)},
            "XL has two text encoders, whose vectors are clip_l and clip_g; the tens",
        ),
        ("sdxl", {"clip_l": (1, WIDTH)}, "Save both in one file under these names"),
        ("sdxl", {"clip_l": (1, WIDTH), "clip_g": (1, 16)}, "vectors of clip_g have 16 numbers"),
        ("sdxl-refiner", {"clip_l": (1, WIDTH), "clip_g": (1, 1280)}, "for XL's second text encoder: "),
    ],
)
def test_a_file_that_does_not_fit_is_refused(kind: str, shapes: Shapes, says: str, tmp_path: Path) -> None:
    demo(kind)
    file = write(tmp_path / "x.safetensors", shapes)

    message = refusal(f"demo:{kind}", **{"<x>": str(file)})

    assert message.startswith(f"models.m.embeddings.<x>: {file} cannot be used with demo:{kind}: ")
    assert says in message


def test_whole_numbers_a_file_that_is_cut_off_and_a_pickle_are_refused(tmp_path: Path) -> None:
    whole_numbers = write(tmp_path / "i.safetensors", ONE, np.int8)
    cut = write(tmp_path / "cut.safetensors", ONE)
    cut.write_bytes(cut.read_bytes()[:-2])
    pickle = tmp_path / "learned_embeds.bin"
    pickle.touch()

    messages = [refusal("demo:sd", **{"<x>": str(file)}) for file in (whole_numbers, cut, pickle)]

    assert all(message.startswith("models.m.embeddings.<x>: ") for message in messages)
    assert "of the type I8" in messages[0]
    assert "it is cut off or damaged" in messages[1]
    assert "is a pickle, which can run code, and is not read" in messages[2]


@pytest.mark.parametrize(
    ("tokens", "num_vectors", "says"),
    [
        (["th"], 1, "th is in the tokenizer's vocabulary; give the token another name, such as <th>"),
        (["<|endoftext|>"], 1, "the tokenizer would not find it"),
        (["a<|StartOfText|>"], 1, "the tokenizer would not find it"),
        (["<Cat>"], 2, "would use only the first of its 2 vectors, because the tokenizer reads <cat>;"),
        (["<Cat>", "<cat>"], 1, "the tokenizer reads it and <cat> as the same token"),
        (["<cat>_2", "<cat>"], 3, "diffusers takes the token <cat>_2 for a further vector of it"),
        (["<cat>", "<cat>_1"], 1, "diffusers takes the token <cat>_1 for a further vector of it"),
    ],
)
def test_a_token_that_would_not_be_read_is_refused(
    tokens: list[str], num_vectors: int, says: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.safetensors", {"x": (num_vectors, WIDTH)})

    message = refusal("demo:sd", **dict.fromkeys(tokens, str(file)))

    assert message.startswith("models.m.embeddings.")
    assert says in message


def test_a_token_of_one_vector_may_have_capital_letters(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", ONE)

    assert [*find("demo:sd", Cat=str(file), **{"<cat>_2": str(file)})] == ["Cat", "<cat>_2"]


@pytest.mark.parametrize("token", ["a b", " a", "a\u00a0b"])
def test_a_token_with_white_space_is_refused_in_the_spec(token: str) -> None:
    with pytest.raises(ValueError, match="has white space; write it as one word"):
        ModelSpec.model_validate({"checkpoint": "a/b", "embeddings": {token: "x.safetensors"}})


@pytest.mark.parametrize("kind", ["variation", "safe", "latent-upscale"])
def test_a_checkpoint_whose_tasks_read_no_tokens_has_none(kind: str, tmp_path: Path) -> None:
    demo(kind)
    file = write(tmp_path / "x.safetensors", ONE)

    message = refusal(f"demo:{kind}", **{"<x>": str(file)})

    assert message == f"models.m.embeddings: diffusers loads no embeddings for a checkpoint of {kind}"


def test_the_vocabulary_is_that_of_the_tokenizers_files(tmp_path: Path) -> None:
    """In each of the forms in which it is saved; a checkpoint in a single file gets CLIP's."""
    file = write(tmp_path / "x.safetensors", ONE)
    single = single_file(small_pipeline("sd1"), tmp_path / "single.safetensors")
    folder = Path(shutil.copytree(demo("sd"), tmp_path / "sd"))
    tokenizer = folder / "tokenizer"
    whole = json.loads((tokenizer / "tokenizer.json").read_text())
    whole["added_tokens"].append({**whole["added_tokens"][0], "content": "<old>", "id": 10**6})
    (tokenizer / "tokenizer.json").write_text(json.dumps(whole))

    of_folder = refusal(str(folder), **{"<old>": str(file)})
    for old in tokenizer.iterdir():
        old.unlink()
    tokenizer.rmdir()
    write_tokenizer(tokenizer, "!")
    of_vocabulary = refusal(str(folder), cat=str(file))
    of_single = refusal(str(single), cat=str(write(tmp_path / "wide.safetensors", {"x": (1, 64)})))

    (tokenizer / "vocab.json").write_text("[")
    of_damaged = refusal(str(folder), cat=str(file))

    assert "<old> is in the tokenizer's vocabulary" in of_folder
    assert "cat is in the tokenizer's vocabulary" in of_vocabulary
    assert "cat is in the tokenizer's vocabulary" in of_single
    assert of_damaged.startswith(f"models.m.checkpoint: {folder} is damaged: the files of its tokenizer")


def test_tasks_read_tokens_where_diffusers_has_a_loader_for_them() -> None:
    loading = {
        system.pipeline
        for system in SYSTEMS
        if hasattr(pipeline_class(system.pipeline), "load_textual_inversion")
    }

    assert {system.pipeline for system in SYSTEMS if system.takes_embeddings} == loading


def test_text_encoders_that_learn_tokens_are_shared_with_no_other_model() -> None:
    """Another model would find the tokens in its texts. What learns nothing is shared."""
    shared = {
        len(embeddings): [component.name for component in shareable_components(files_in(demo("sd")), model)]
        for embeddings in ({}, {"<cat-toy>": "cat.safetensors"})
        for model in [ModelSpec.model_validate({"checkpoint": "demo:sd", "embeddings": embeddings})]
    }

    assert {*shared[0]} - {*shared[1]} == {"text_encoder"}
    assert {"unet", "vae"} <= {*shared[1]}
