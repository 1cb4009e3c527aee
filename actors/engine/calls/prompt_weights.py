"""Prompt weighting in compel's syntax: `a (fox)1.5 in the snow-`.

compel 2.5.1 parses the syntax and weighs the embeddings. Its own wrappers know Stable Diffusion and XL
without `clip_skip`, so each pipeline's way of reading an encoder is handed to it; and they let XL's pooled
embedding read the signs of the syntax, so prompt_reader.py makes that one of the bare text.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from compel import EmbeddingsProvider, PromptParser, SplitLongTextMode
from compel.prompt_parser import FlattenedPrompt, Fragment

from schemas.errors import RowError

Fragments = tuple[tuple[str, float], ...]
"""Pieces of a prompt with their weights."""

State = Callable[[Any, Any], torch.Tensor]
"""From an encoder and its output to what the pipeline takes of it."""

_SIGNS = frozenset('()+-"\\')
"""Without any of them a text is plain: no need for a parser that takes a millisecond."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Fragments:
    """A prompt's pieces; RowError for what weighs whole prompts against each other."""
    if not _SIGNS.intersection(text):
        return ((text, 1.0),)
    found = _parser().parse_conjunction(text).prompts
    pieces = found[0].children if len(found) == 1 and isinstance(found[0], FlattenedPrompt) else None
    if pieces is None or not all(type(piece) is Fragment for piece in pieces):
        raise RowError(
            "invalid_prompt",
            "of compel's syntax only weights are read, as in `(fox)1.5` or `snow-`; not and, blend or swap",
        )
    return tuple((piece.text, piece.weight) for piece in pieces) or (("", 1.0),)


@cache
def _parser() -> Any:
    return PromptParser()


def is_weighted(text: str) -> bool:
    """Whether compel reads the text otherwise than as it stands."""
    try:
        return parse(text) != ((text, 1.0),)
    except RowError:
        return True


def pieces_of(text: str) -> list[str]:
    """The text without the syntax, in the pieces that are tokenized one by one."""
    try:
        return [piece for piece, _ in parse(text)]
    except RowError:
        return [text]


class _Provider(EmbeddingsProvider):  # type: ignore[misc]  # compel has no types
    """compel's weighing, over what the pipeline takes of its encoder."""

    def __init__(self, tokenizer: Any, encoder: Any, *, cut: bool, state: State) -> None:
        super().__init__(
            tokenizer,
            encoder,
            dtype_for_device_getter=lambda _: encoder.dtype,
            truncate=cut,
            # At the 75th token, as in unweighted windows.
            split_long_text_mode=SplitLongTextMode.BRUTAL,
        )
        self._state = state

    def _encode_token_ids_to_embeddings(self, token_ids: Any, attention_mask: Any = None) -> Any:
        return self._state(
            self.text_encoder, self.text_encoder(token_ids, attention_mask, output_hidden_states=True)
        )


def weighted_states(
    tokenizer: Any, encoder: Any, texts: list[str], num_windows: int, state: State
) -> torch.Tensor:
    """(texts, num_windows * 77, width)."""
    provider = _Provider(tokenizer, encoder, cut=num_windows == 1, state=state)
    length = num_windows * tokenizer.model_max_length
    return torch.cat([_weighted(provider, text, length, encoder.device) for text in texts])


def _weighted(provider: _Provider, text: str, length: int, device: torch.device) -> torch.Tensor:
    pieces, weights = zip(*parse(text), strict=True)
    found = provider.get_embeddings_for_weighted_prompt_fragments([[*pieces]], [[*weights]], device=device)
    empty = provider.empty_z
    missing = max(0, length - found.shape[1]) // empty.shape[1]
    whole: torch.Tensor = torch.cat([found, *[empty] * missing], dim=1)
    return whole[:, :length]
