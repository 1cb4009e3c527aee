"""What a checkpoint's text encoders read of a row: 75 tokens of a text at a time, with weights, or cut."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionLatentUpscalePipeline

from actors.components import ModelCache
from actors.engine.samples import Sample
from actors.pipelines import pipeline_class
from actors.prompt_weights import is_weighted, parse, pieces_of, weighted_states
from schemas.columns.input_columns import TEXT_FIELDS
from schemas.errors import RowError
from schemas.systems.system_table import PROMPTS

Tokens = list[int]


class PromptReader:
    """Measures texts with the tokenizers of the models that are going to read them."""

    def __init__(self, models: ModelCache, *, chunk: bool, weighted: bool) -> None:
        self._models = models
        self._chunk = chunk
        self._weighted = weighted
        self._tokenizers: dict[str, list[Any]] = {}

    def read(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with how their texts are to be encoded, or with what is cut off them."""
        texts: dict[str, dict[str, None]] = {}
        for sample in samples:
            texts.setdefault(sample.routed.model, {}).update(dict.fromkeys(_all_texts(sample)))
        tokens = {
            (model, place, text): found
            for model, wanted in texts.items()
            for place, tokenizer in enumerate(self._tokenizers_of(model))
            for text, found in _tokenize(tokenizer, list(wanted), weighted=self._weighted)
        }
        return [self._measured(sample, tokens) for sample in samples]

    def _tokenizers_of(self, model: str) -> list[Any]:
        if model not in self._tokenizers:
            components = self._models.get(model).components
            self._tokenizers[model] = [tokenizer for tokenizer, _ in text_encoders(components)]
        return self._tokenizers[model]

    def _measured(self, sample: Sample, tokens: dict[tuple[str, int, str], Tokens]) -> Sample:
        # What was found for the step before says nothing of this one.
        sample = replace(sample, num_windows=1, weighted=False)
        if "prompt" not in sample.system.texts:
            return sample
        if self._weighted and any(map(is_weighted, _all_texts(sample))):
            sample = replace(sample, weighted=True)
        model = sample.routed.model
        tokenizers = self._tokenizers[model]
        if self._chunk and takes_embeddings(sample.system.pipeline):
            needed = (
                -(-len(tokens[model, place, text]) // _room(tokenizer))
                for place, tokenizer in enumerate(tokenizers)
                for text in _texts(sample, place).values()
            )
            return replace(sample, num_windows=max(1, *needed))
        return replace(sample, truncated={**self._cut(sample, tokens), **sample.truncated})

    def _cut(self, sample: Sample, tokens: dict[tuple[str, int, str], Tokens]) -> dict[str, str]:
        """What is left out, by the field whose text it is, as diffusers' own warning shows it."""
        cut: dict[str, str] = {}
        model = sample.routed.model
        for place, tokenizer in enumerate(self._tokenizers[model]):
            for field, text in _texts(sample, place).items():
                rest = tokens[model, place, text][_room(tokenizer) :]
                if rest:
                    cut.setdefault(field, tokenizer.decode(rest))
        return cut


def check_texts(sample: Sample) -> None:
    """RowError for weights that cannot be read, or that the step's pipeline cannot be given."""
    if sample.weighted and not takes_embeddings(sample.system.pipeline):
        raise RowError("invalid_prompt", f"{sample.system.pipeline} takes no weighted prompts")
    for text in sample.opened.row.texts.values() if sample.weighted else ():
        parse(text or "")


def _all_texts(sample: Sample) -> list[str]:
    if "prompt" not in sample.system.texts:
        return []
    places = (0, 1) if "prompt_2" in sample.system.texts else (0,)
    return [text for place in places for text in _texts(sample, place).values()]


def _texts(sample: Sample, place: int) -> dict[str, str]:
    """What the text encoder at `place` reads for a sample, by the field that has it: its prompt, and with
    guidance its negative one."""
    row = sample.opened.row.texts
    scale = sample.parameters["guidance_scale"]
    guided = isinstance(scale, (int, float)) and scale > 1
    fields: tuple[str, ...] = PROMPTS if guided else PROMPTS[:1]
    if place == 1:
        fields = tuple(f"{field}_2" if row[f"{field}_2"] else field for field in fields)
    return {field: row[field] or "" for field in fields}


def _tokenize(tokenizer: Any, texts: list[str], *, weighted: bool) -> Iterator[tuple[str, Tokens]]:
    """Each text with its tokens; of a text with weights, those of its pieces."""
    pieces = {text: pieces_of(text) if weighted else [text] for text in texts}
    every = list(dict.fromkeys(piece for found in pieces.values() for piece in found))
    # verbose: transformers would warn of texts that the model cannot take in one piece.
    ids = tokenizer(every, add_special_tokens=False, verbose=False).input_ids if every else []
    tokens = dict(zip(every, ids, strict=True))
    for text, found in pieces.items():
        yield text, [token for piece in found for token in tokens[piece]]


def _room(tokenizer: Any) -> int:
    """Tokens of text that an encoder takes at a time: 77, less one that begins and one that ends them."""
    room: int = tokenizer.model_max_length - 2
    return room


def text_encoders(components: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) pairs, in the order in which the pipelines read; a refiner has the second."""
    pairs = [
        (components.get(f"tokenizer{suffix}"), components.get(f"text_encoder{suffix}"))
        for suffix in ("", "_2")
    ]
    return [pair for pair in pairs if pair[0] is not None]


@cache
def takes_embeddings(pipeline: str) -> bool:
    """Whether a pipeline can be given a prompt that is encoded already; Safe's (diffusers 0.42.1) cannot."""
    return "prompt_embeds" in inspect.signature(pipeline_class(pipeline).__call__).parameters


def encoded(found: dict[str, Any], pipeline: Any, num_windows: int, *, weighted: bool) -> dict[str, Any]:
    """A call's arguments with its texts encoded in `num_windows` windows each, those that need fewer filled
    up with empty ones.

    What a pooled embedding tells of a text, it tells of its first window.
    """
    prompts = [found.get("prompt"), found.get("prompt_2")]
    nothing = [""] * len(found["prompt"])
    negatives = [found.get("negative_prompt") or nothing, found.get("negative_prompt_2") or nothing]
    embeds, pooled = _encode(pipeline, prompts, num_windows, found.get("clip_skip"), weighted)
    if found.get("negative_prompt") is None and pipeline.config.get("force_zeros_for_empty_prompt"):
        negative_embeds = torch.zeros_like(embeds)
        negative_pooled = None if pooled is None else torch.zeros_like(pooled)
    else:
        # diffusers 0.42.1 skips no layer for the negative prompt.
        negative_embeds, negative_pooled = _encode(pipeline, negatives, num_windows, None, weighted)
    embedded = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    if pooled is not None and negative_pooled is not None:
        embedded |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
    return {name: value for name, value in found.items() if name not in TEXT_FIELDS} | embedded


def _encode(
    pipeline: Any,
    texts: Sequence[list[str] | None],
    num_windows: int,
    clip_skip: int | None,
    weighted: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(rows, num_windows * 77, width), and (rows, width) where the pipeline wants a pooled embedding."""

    def weighable(encoder: Any, output: Any) -> torch.Tensor:
        return _state(pipeline, encoder, output, clip_skip)[0]

    states, pooled = [], None
    # Not strict: a refiner's one encoder reads `prompt`, and `prompt_2` is read by none.
    for (tokenizer, encoder), read in zip(text_encoders(pipeline.components), texts, strict=False):
        assert read is not None, "a pipeline with two encoders is given two texts"
        tokens = dict(_tokenize(tokenizer, read, weighted=weighted))
        windows = [window for text in read for window in _windows(tokenizer, tokens[text], num_windows)]
        output = encoder(torch.tensor(windows, device=encoder.device), output_hidden_states=True)
        state, summary = _state(pipeline, encoder, output, clip_skip)
        if weighted:
            state = weighted_states(tokenizer, encoder, read, num_windows, weighable)
        states.append(state.reshape(len(read), -1, state.shape[-1]))
        if pooled is None and summary is not None:
            pooled = summary[::num_windows]
    return torch.cat(states, dim=-1), pooled


def _windows(tokenizer: Any, tokens: Tokens, num_windows: int) -> Iterator[Tokens]:
    room = _room(tokenizer)
    for start in range(0, num_windows * room, room):
        window = [tokenizer.bos_token_id, *tokens[start : start + room], tokenizer.eos_token_id]
        yield window + [tokenizer.pad_token_id] * (room + 2 - len(window))


def _state(
    pipeline: Any, encoder: Any, output: Any, clip_skip: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `encode_prompt` of each pipeline takes of an encoder's output, and its pooled embedding (diffusers
    0.42.1)."""
    if hasattr(pipeline, "text_encoder_2"):
        return output.hidden_states[-2 - (clip_skip or 0)], output[0] if output[0].ndim == 2 else None
    if isinstance(pipeline, StableDiffusionLatentUpscalePipeline):
        return output.hidden_states[-1], output.pooler_output
    if clip_skip is None:
        return output[0], None
    return encoder.text_model.final_layer_norm(output.hidden_states[-1 - clip_skip]), None
