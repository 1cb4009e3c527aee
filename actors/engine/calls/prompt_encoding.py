"""Prompts of any length, encoded as embeddings."""

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionLatentUpscalePipeline

from actors.engine.calls.prompt_weights import pieces_of, weighted_states
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.quirks.pipeline_overrides import with_all_vectors
from schemas.columns.fields import TEXT_FIELDS

Tokens = list[int]
"""The ids of a text's tokens, without those that begin and end a window."""


def tokenize(tokenizer: Any, texts: list[str], *, weighted: bool) -> Iterator[tuple[str, Tokens]]:
    """Yield each text with its tokens. A text with weights is tokenized piece by piece."""
    pieces = {text: pieces_of(text) if weighted else [text] for text in texts}
    distinct = list(dict.fromkeys(piece for text_pieces in pieces.values() for piece in text_pieces))
    whole = [with_all_vectors(tokenizer, piece) for piece in distinct]
    # Without verbose=False, transformers warns of texts that are longer than one window.
    ids = tokenizer(whole, add_special_tokens=False, verbose=False).input_ids if whole else []
    tokens = dict(zip(distinct, ids, strict=True))
    for text, text_pieces in pieces.items():
        yield text, [token for piece in text_pieces for token in tokens[piece]]


def tokens_per_window(tokenizer: Any) -> int:
    """The tokens of text in one window of an encoder: 77, less the two that begin and end the window."""
    length: int = tokenizer.model_max_length - 2
    return length


def text_encoders(components: Any) -> list[tuple[Any, Any]]:
    """The (tokenizer, text encoder) pairs, in the order of the pipelines; a refiner has only the second."""
    pairs = [
        (components.get(f"tokenizer{suffix}"), components.get(f"text_encoder{suffix}"))
        for suffix in ("", "_2")
    ]
    return [pair for pair in pairs if pair[0] is not None]


@cache
def takes_embeddings(pipeline: str) -> bool:
    """Whether a pipeline takes prompts that are encoded already; Safe (diffusers 0.42.1) does not."""
    return "prompt_embeds" in inspect.signature(pipeline_class(pipeline).__call__).parameters


def with_encoded_texts(
    arguments: dict[str, Any], pipeline: Any, num_windows: int, *, weighted: bool
) -> dict[str, Any]:
    """A call's arguments with its texts encoded in `num_windows` windows each.

    Texts that need fewer windows are filled up with empty ones. A pooled embedding is that of a text's first
    window.
    """
    prompts = [arguments.get("prompt"), arguments.get("prompt_2")]
    empty = [""] * len(arguments["prompt"])
    negatives = [arguments.get("negative_prompt") or empty, arguments.get("negative_prompt_2") or empty]
    embeds, pooled = _encode(pipeline, prompts, num_windows, arguments.get("clip_skip"), weighted)
    if arguments.get("negative_prompt") is None and pipeline.config.get("force_zeros_for_empty_prompt"):
        negative_embeds = torch.zeros_like(embeds)
        negative_pooled = None if pooled is None else torch.zeros_like(pooled)
    else:
        # diffusers 0.42.1 ignores `clip_skip` for the negative prompt.
        negative_embeds, negative_pooled = _encode(pipeline, negatives, num_windows, None, weighted)
    embedded = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    if pooled is not None and negative_pooled is not None:
        embedded |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
    return {name: value for name, value in arguments.items() if name not in TEXT_FIELDS} | embedded


def _encode(
    pipeline: Any,
    texts: Sequence[list[str] | None],
    num_windows: int,
    clip_skip: int | None,
    weighted: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The embeddings (rows, num_windows * 77, width) and the pooled ones (rows, width), which may be None."""

    def weighable(encoder: Any, output: Any) -> torch.Tensor:
        return _state(pipeline, encoder, output, clip_skip)[0]

    states, pooled = [], None
    # Not strict: a refiner has only one encoder, which reads `prompt`; nothing reads `prompt_2`.
    for (tokenizer, encoder), prompts in zip(text_encoders(pipeline.components), texts, strict=False):
        assert prompts is not None, "a pipeline with two encoders gets two texts for each row"
        tokens = dict(tokenize(tokenizer, prompts, weighted=weighted))
        windows = [window for text in prompts for window in _windows(tokenizer, tokens[text], num_windows)]
        output = encoder(torch.tensor(windows, device=encoder.device), output_hidden_states=True)
        state, summary = _state(pipeline, encoder, output, clip_skip)
        if weighted:
            state = weighted_states(tokenizer, encoder, prompts, num_windows, weighable)
        states.append(state.reshape(len(prompts), -1, state.shape[-1]))
        if pooled is None and summary is not None:
            pooled = summary[::num_windows]
    return torch.cat(states, dim=-1), pooled


def _windows(tokenizer: Any, tokens: Tokens, num_windows: int) -> Iterator[Tokens]:
    length = tokens_per_window(tokenizer)
    for start in range(0, num_windows * length, length):
        window = [tokenizer.bos_token_id, *tokens[start : start + length], tokenizer.eos_token_id]
        yield window + [tokenizer.pad_token_id] * (length + 2 - len(window))


def _state(
    pipeline: Any, encoder: Any, output: Any, clip_skip: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The hidden state and the pooled embedding that the pipeline's `encode_prompt` takes of an encoder's
    output (diffusers 0.42.1)."""
    if hasattr(pipeline, "text_encoder_2"):
        return output.hidden_states[-2 - (clip_skip or 0)], output[0] if output[0].ndim == 2 else None
    if isinstance(pipeline, StableDiffusionLatentUpscalePipeline):
        return output.hidden_states[-1], output.pooler_output
    if clip_skip is None:
        return output[0], None
    return encoder.text_model.final_layer_norm(output.hidden_states[-1 - clip_skip]), None
