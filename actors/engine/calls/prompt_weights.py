"""Prompt weighting in compel's syntax: `a (fox)1.5 in the snow-`.

compel 2.5.1 parses the syntax and weights the embeddings. Its own wrappers are not used: they support Stable
Diffusion and XL without `clip_skip`, so here each pipeline reads its encoders itself; and they encode the
signs of the syntax in XL's pooled embedding, so prompt_encoding.py takes that one from the bare text.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from compel import EmbeddingsProvider, PromptParser, SplitLongTextMode
from compel.prompt_parser import FlattenedPrompt, Fragment

from actors.engine.quirks.pipeline_overrides import with_all_vectors
from schemas.errors import RowError

Fragments = tuple[tuple[str, float], ...]
"""The pieces of a prompt, each with its weight."""

State = Callable[[Any, Any], torch.Tensor]
"""From an encoder and its output to the hidden state that the pipeline takes of the output."""

_SIGNS = frozenset('()+-"\\')
"""A text with none of these is plain, and needs no parser, which takes a millisecond."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Fragments:
    """A prompt's pieces; RowError for syntax that combines whole prompts."""
    if not _SIGNS.intersection(text):
        return ((text, 1.0),)
    prompts = _parser().parse_conjunction(text).prompts
    is_single = len(prompts) == 1 and isinstance(prompts[0], FlattenedPrompt)
    pieces = prompts[0].children if is_single else None
    if pieces is None or not all(type(piece) is Fragment for piece in pieces):
        raise RowError(
            "invalid_prompt",
            "of compel's syntax, use only weights, as in `(fox)1.5` or `snow-`, and not and, blend or swap",
        )
    return tuple((piece.text, piece.weight) for piece in pieces) or (("", 1.0),)


@cache
def _parser() -> Any:
    return PromptParser()


def is_weighted(text: str) -> bool:
    """Whether a text has weights, or other syntax of compel, so that compel does not read it as it is."""
    try:
        return parse(text) != ((text, 1.0),)
    except RowError:
        return True


def pieces_of(text: str) -> list[str]:
    """The text's pieces without the syntax; each is tokenized by itself."""
    try:
        return [piece for piece, _ in parse(text)]
    except RowError:
        return [text]


class _Provider(EmbeddingsProvider):  # type: ignore[misc]  # compel has no types
    """compel's weighting, applied to the hidden state that the pipeline takes of its encoder."""

    def __init__(self, tokenizer: Any, encoder: Any, *, cut: bool, state: State) -> None:
        super().__init__(
            tokenizer,
            encoder,
            dtype_for_device_getter=lambda _: encoder.dtype,
            truncate=cut,
            # Splits after the 75th token, as windows without weights are split.
            split_long_text_mode=SplitLongTextMode.BRUTAL,
        )
        self._state = state

    def build_weighted_embedding_tensor(
        self,
        token_ids: torch.Tensor,
        per_token_weights: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        device: Any = None,
    ) -> torch.Tensor:
        """compel's own, with the arguments in the host's memory: compel asks the device whether all are 1."""
        length = self.max_token_count
        windows = [slice(start, start + length) for start in range(0, len(token_ids), length)]
        states = [
            self._weighted(
                token_ids[window],
                per_token_weights[window],
                None if attention_mask is None else attention_mask[window],
            )
            for window in windows
        ]
        return torch.cat(states, dim=1)

    def _weighted(
        self, token_ids: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The weighted state of one window."""
        # A mask of ones is the same as none, but transformers 5.23 asks the device for it.
        state = self._encoded(token_ids, None if mask is None or mask.all() else mask)
        if (weights == 1).all():
            return state
        factors, empty = weights[:, None].to(state.device), self.empty_z
        return torch.where(factors == 1, state, empty + (state - empty) * factors)

    @property
    def empty_z(self) -> torch.Tensor:
        """The state of an empty window."""
        num_signs = len(self.bos_sequence) + len(self.eos_sequence)
        padding = [self.tokenizer.pad_token_id] * (self.max_token_count - num_signs)
        return self._encoded(torch.tensor([*self.bos_sequence, *self.eos_sequence, *padding]))

    def _encoded(self, token_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        device = self.text_encoder.device
        # Moved last: only then does the row cache know on the host what was moved.
        tokens, mask = token_ids[None].to(device), None if mask is None else mask[None].to(device)
        return self._state(self.text_encoder, self.text_encoder(tokens, mask, output_hidden_states=True))


def weighted_states(
    tokenizer: Any, encoder: Any, texts: list[str], num_windows: int, state: State
) -> torch.Tensor:
    """The weighted hidden states of texts, (texts, num_windows * 77, width)."""
    provider = _Provider(tokenizer, encoder, cut=num_windows == 1, state=state)
    length = num_windows * tokenizer.model_max_length
    return torch.cat([_weighted(provider, text, length) for text in texts])


def _weighted(provider: _Provider, text: str, length: int) -> torch.Tensor:
    pieces, weights = zip(*parse(text), strict=True)
    whole = [with_all_vectors(provider.tokenizer, piece) for piece in pieces]
    state = provider.get_embeddings_for_weighted_prompt_fragments([whole], [[*weights]], device="cpu")
    empty = provider.empty_z
    missing = max(0, length - state.shape[1]) // empty.shape[1]
    filled: torch.Tensor = torch.cat([state, *[empty] * missing], dim=1)
    return filled[:, :length]
