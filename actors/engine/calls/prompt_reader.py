"""How a row's texts are encoded: in windows of 75 tokens, with weights, or cut after the first window."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.engine.calls.prompt_encoding import (
    Tokens,
    takes_embeddings,
    text_encoders,
    tokenize,
    tokens_per_window,
)
from actors.engine.calls.prompt_weights import is_weighted, parse
from actors.engine.pipelines.model_cache import ModelCache
from actors.engine.samples import Sample
from schemas.errors import RowError

REPLACEMENT = "\ufffd"
"""What tokenizers decode the bytes of an incomplete character to."""


class PromptReader:
    """Measures texts with the tokenizers of the models that are going to encode them."""

    def __init__(self, models: ModelCache, *, chunk: bool, weighted: bool) -> None:
        """`chunk`: whether long texts get several windows; `weighted`: whether prompt weights are read."""
        self._models = models
        self._chunk = chunk
        self._weighted = weighted
        self._tokenizers: dict[str, list[Any]] = {}

    def read(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with `num_windows`, `weighted` and `truncated` set for the current step."""
        texts: dict[str, dict[str, None]] = {}
        for sample in samples:
            texts.setdefault(sample.route.model, {}).update(dict.fromkeys(sample.all_encoder_texts()))
        tokens = {
            (model, encoder, text): text_tokens
            for model, model_texts in texts.items()
            for encoder, tokenizer in enumerate(self._tokenizers_of(model))
            for text, text_tokens in tokenize(tokenizer, list(model_texts), weighted=self._weighted)
        }
        return [self._measured(sample, tokens) for sample in samples]

    def _tokenizers_of(self, model: str) -> list[Any]:
        if model not in self._tokenizers:
            components = self._models.get(model).components
            self._tokenizers[model] = [tokenizer for tokenizer, _ in text_encoders(components)]
        return self._tokenizers[model]

    def _measured(self, sample: Sample, tokens: dict[tuple[str, int, str], Tokens]) -> Sample:
        # The values of the step before do not apply to this step.
        sample = replace(sample, num_windows=1, weighted=False)
        if "prompt" not in sample.system.texts:
            return sample
        if self._weighted and any(map(is_weighted, sample.all_encoder_texts())):
            sample = replace(sample, weighted=True)
        model = sample.route.model
        tokenizers = self._tokenizers[model]
        if self._chunk and takes_embeddings(sample.system.pipeline):
            window_counts = (
                -(-len(tokens[model, encoder, text]) // tokens_per_window(tokenizer))
                for encoder, tokenizer in enumerate(tokenizers)
                for text in sample.encoder_texts(encoder).values()
            )
            return replace(sample, num_windows=max(1, *window_counts))
        return replace(sample, truncated={**self._cut(sample, tokens), **sample.truncated})

    def _cut(self, sample: Sample, tokens: dict[tuple[str, int, str], Tokens]) -> dict[str, str]:
        """The end of each text that is cut off, by the text's field, as diffusers' own warning shows it."""
        cut: dict[str, str] = {}
        model = sample.route.model
        for encoder, tokenizer in enumerate(self._tokenizers[model]):
            for field, text in sample.encoder_texts(encoder).items():
                text_tokens, end = tokens[model, encoder, text], tokens_per_window(tokenizer)
                if len(text_tokens) > end:
                    cut.setdefault(field, _text_from(tokenizer, text_tokens, end))
        return cut


def _text_from(tokenizer: Any, tokens: Tokens, start: int) -> str:
    """The text of the tokens from `start` on, with all of a character whose bytes are in two tokens."""
    # A character has at most four bytes, and a token at least one.
    for first in range(start, max(0, start - 3) - 1, -1):
        text = str(tokenizer.decode(tokens[first:]))
        if not text.startswith(REPLACEMENT):
            return text
    return str(tokenizer.decode(tokens[start:]))


def check_texts(sample: Sample) -> None:
    """Raise RowError for weights that cannot be parsed, or that the step's pipeline does not take."""
    if sample.weighted and not takes_embeddings(sample.system.pipeline):
        raise RowError("invalid_prompt", f"{sample.system.pipeline} does not take prompts with weights")
    for text in sample.opened.row.texts.values() if sample.weighted else ():
        parse(text or "")
