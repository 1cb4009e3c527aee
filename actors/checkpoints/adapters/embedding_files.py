"""The files of tokens that textual inversion learned, compared with a checkpoint before it is loaded."""

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from actors.checkpoints.adapters.adapter_files import find_adapter
from actors.checkpoints.adapters.lora_check import FILES_AT_ONCE
from actors.checkpoints.component_files import TEXT_ENCODERS, Files
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.model_files import files_of
from actors.checkpoints.single_files.safetensors_headers import Tensor
from actors.checkpoints.sources import not_on_the_hub
from actors.storage.stores import Stores
from models.clip_tokenizer import END, START, as_tokenizers_read, clip_tokens
from schemas.errors import SpecError
from schemas.job import pinned
from schemas.spec.adapter_spec import AdapterSpec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import EmbeddingFile, LearnedVectors, ModelCard
from schemas.systems.system_table import SYSTEMS
from schemas.wording.amounts import counted
from schemas.wording.printable import listed

_XL_TENSORS = (
    dict(zip(TEXT_ENCODERS, ("clip_l", "clip_g"), strict=True)),
    dict(zip(TEXT_ENCODERS, ("text_encoders_0", "text_encoders_1"), strict=True)),
)
"""The tensors that a file for XL has for each text encoder, under the names that trainers give them."""
_FLOATS = ("F16", "BF16", "F32", "F64")
_MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "XL's second text encoder"}
"""The kind of checkpoint, by the width of its embeddings."""


def find_embeddings(name: str, model: ModelSpec, card: ModelCard, stores: Stores) -> dict[str, EmbeddingFile]:
    """The files of a model's learned tokens; SpecError for the first that the model cannot use.

    `name`: the model's name in the spec. Only headers, configurations and vocabularies are read, and what a
    hash needs.
    """
    if not model.embeddings:
        return {}
    key = f"models.{name}.embeddings"
    if not any(system.takes_embeddings for system in SYSTEMS if system.family == card.family):
        raise SpecError(f"{key}: diffusers loads no embeddings for a checkpoint of {card.family}")
    widths, vocabulary = _encoders(name, model, card)

    def find(entry: tuple[str, AdapterSpec]) -> EmbeddingFile:
        token, spec = entry
        adapter = find_adapter(f"{key}.{token}", token, spec, stores)
        try:
            vectors = _vectors(adapter.header.tensors, widths)
        except ValueError as error:
            raise SpecError(
                f"{key}.{token}: {adapter.location} cannot be used with {model.checkpoint}: {error}"
            ) from error
        return EmbeddingFile(**asdict(adapter.file), vectors=vectors)

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        found = {file.name: file for file in threads.map(find, model.embeddings.items())}
    for token, file in found.items():
        if problem := _problem(token, file.num_vectors, vocabulary, [*found]):
            raise SpecError(f"{key}.{token}: {problem}")
    return found


def _encoders(name: str, model: ModelSpec, card: ModelCard) -> tuple[dict[str, int], set[str]]:
    """(width of the embeddings by text encoder, tokens that a tokenizer has) of a checkpoint."""
    key = f"models.{name}.checkpoint"
    try:
        files = files_of(pinned(model, card))
        configs = {each: files.get(f"{each}/config.json") for each in TEXT_ENCODERS}
        # The default is that of transformers' CLIPTextConfig.
        widths = {
            encoder: int(json.loads(config.read()).get("hidden_size", 512))
            for encoder, config in configs.items()
            if config is not None
        }
        tokenizers = [encoder.replace("text_encoder", "tokenizer") for encoder in widths]
        return widths, {token for tokenizer in tokenizers for token in _vocabulary(files, tokenizer)}
    except HUB_ERRORS as error:
        raise not_on_the_hub(key, card.checkpoint, card.revision, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{key}: {model.checkpoint} is damaged: the files of its tokenizer or its text encoder cannot be "
            f"read ({error!r:.200})"
        ) from error


def _vocabulary(files: Files, tokenizer: str) -> Iterator[str]:
    """The tokens that a checkpoint's tokenizer has, with those that were added to it."""
    contents = {
        name: json.loads(files[f"{tokenizer}/{name}"].read())
        for name in ("vocab.json", "tokenizer.json", "added_tokens.json", "tokenizer_config.json")
        if f"{tokenizer}/{name}" in files
    }
    yield from contents.get("vocab.json", ())
    whole = contents.get("tokenizer.json", {})
    yield from whole.get("model", {}).get("vocab", ())
    yield from (each["content"] for each in whole.get("added_tokens", ()))
    yield from contents.get("added_tokens.json", ())
    added = contents.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
    yield from (each["content"] for each in added.values())
    if not {"vocab.json", "tokenizer.json"} & contents.keys():
        yield from clip_tokens()  # A checkpoint in a single file gets the tokenizer that comes with darkroom.


def _vectors(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, LearnedVectors]:
    """The vectors of a file with these tensors for encoders of these widths; ValueError if they misfit."""
    return {
        encoder: _checked(tensor, tensors[tensor], encoder, widths[encoder])
        for encoder, tensor in _by_encoder(tensors, [*widths]).items()
    }


def _by_encoder(tensors: Collection[str], encoders: Collection[str]) -> dict[str, str]:
    """The name of each encoder's tensor, as diffusers 0.42.1 loads the file or is told to for XL."""
    for names in _XL_TENSORS:
        if {*names.values()} == {*tensors} and TEXT_ENCODERS[1] in encoders:
            return {encoder: names[encoder] for encoder in encoders}
    # An embedding's own tensor may have any name.
    if len(tensors) > len(TEXT_ENCODERS) and any("lora_" in name for name in tensors):
        raise ValueError("it is a LoRA; name it in `loras` of the model, and in the column loras of rows")
    shown = listed(sorted(tensors)) or "none"
    if len(encoders) > 1:
        raise ValueError(
            f"XL has two text encoders, whose vectors are clip_l and clip_g; the tensors of this file are "
            f"{shown}. Save both in one file under these names"
        )
    if any({*names.values()} == {*tensors} for names in _XL_TENSORS):
        raise ValueError(f"it was made for XL: it has {shown}")
    if len(tensors) != 1:
        raise ValueError(
            f"an embedding is a single tensor, and this file has {counted(len(tensors), 'tensor')}: {shown}"
        )
    return {encoder: tensor for encoder in encoders for tensor in tensors}


def _checked(name: str, tensor: Tensor, encoder: str, width: int) -> LearnedVectors:
    shape = tensor.shape
    if len(shape) not in (1, 2) or 0 in shape or tensor.dtype not in _FLOATS:
        raise ValueError(
            f"its tensor {name:.100} is of the type {tensor.dtype} and has the shape {shape}; vectors are "
            "numbers with a point, and have a shape such as (4, 768)"
        )
    if shape[-1] != width:
        made_for = f"it was made for {_MADE_FOR[shape[-1]]}: " if shape[-1] in _MADE_FOR else ""
        raise ValueError(
            f"{made_for}the vectors of {name:.100} have {shape[-1]:,} numbers, and the embeddings of the "
            f"{encoder} {width:,}"
        )
    return LearnedVectors(tensor=name, num_vectors=shape[0] if len(shape) == 2 else 1, width=width)


def _problem(token: str, num_vectors: int, vocabulary: Collection[str], tokens: Collection[str]) -> str:
    """Why the tokenizer would not find a token, or not all of its vectors; empty if it would."""
    read = as_tokenizers_read(token)
    if any(sign in read for sign in (START, END)):
        return f"the tokenizer would not find it, because it finds {START} and {END} first; rename it"
    vectors = [token, *(f"{token}_{number}" for number in range(1, max(num_vectors, 2)))]
    for each in vectors:
        if each in vocabulary:
            return f"{each} is in the tokenizer's vocabulary; give the token another name, such as <{token}>"
    if num_vectors > 1 and read != token:
        return (
            f"diffusers would use only the first of its {num_vectors} vectors, because the tokenizer reads "
            f"{read}; write it so, in prompts too"
        )
    for other in tokens:
        if other != token and as_tokenizers_read(other) == read:
            return f"the tokenizer reads it and {other} as the same token; rename one"
        if other in vectors[1:]:
            return f"diffusers takes the token {other} for a further vector of it; rename one"
    return ""
