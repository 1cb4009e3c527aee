"""Prompts of any length as embeddings."""

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionLatentUpscalePipeline

from actors.engine.calls.prompt_weights import pieces_of, weighted_states
from actors.engine.pipelines.pipeline_builder import pipeline_class
from schemas.columns.input_columns import TEXT_FIELDS

Tokens = list[int]


def tokenize(tokenizer: Any, texts: list[str], *, weighted: bool) -> Iterator[tuple[str, Tokens]]:
    """Each text with its tokens; of a text with weights, those of its pieces."""
    pieces = {text: pieces_of(text) if weighted else [text] for text in texts}
    every = list(dict.fromkeys(piece for found in pieces.values() for piece in found))
    # verbose: transformers would warn of texts that the model cannot take in one piece.
    ids = tokenizer(every, add_special_tokens=False, verbose=False).input_ids if every else []
    tokens = dict(zip(every, ids, strict=True))
    for text, found in pieces.items():
        yield text, [token for piece in found for token in tokens[piece]]


def tokens_per_window(tokenizer: Any) -> int:
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
        tokens = dict(tokenize(tokenizer, read, weighted=weighted))
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
    room = tokens_per_window(tokenizer)
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
