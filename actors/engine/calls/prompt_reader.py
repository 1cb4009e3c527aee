"""What a checkpoint's text encoders read of a row: 75 tokens of a text at a time, with weights, or cut."""

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
            texts.setdefault(sample.route.model, {}).update(dict.fromkeys(sample.all_encoder_texts()))
        tokens = {
            (model, encoder, text): found
            for model, wanted in texts.items()
            for encoder, tokenizer in enumerate(self._tokenizers_of(model))
            for text, found in tokenize(tokenizer, list(wanted), weighted=self._weighted)
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
        if self._weighted and any(map(is_weighted, sample.all_encoder_texts())):
            sample = replace(sample, weighted=True)
        model = sample.route.model
        tokenizers = self._tokenizers[model]
        if self._chunk and takes_embeddings(sample.system.pipeline):
            needed = (
                -(-len(tokens[model, encoder, text]) // tokens_per_window(tokenizer))
                for encoder, tokenizer in enumerate(tokenizers)
                for text in sample.encoder_texts(encoder).values()
            )
            return replace(sample, num_windows=max(1, *needed))
        return replace(sample, truncated={**self._cut(sample, tokens), **sample.truncated})

    def _cut(self, sample: Sample, tokens: dict[tuple[str, int, str], Tokens]) -> dict[str, str]:
        """What is left out, by the field whose text it is, as diffusers' own warning shows it."""
        cut: dict[str, str] = {}
        model = sample.route.model
        for encoder, tokenizer in enumerate(self._tokenizers[model]):
            for field, text in sample.encoder_texts(encoder).items():
                rest = tokens[model, encoder, text][tokens_per_window(tokenizer) :]
                if rest:
                    cut.setdefault(field, tokenizer.decode(rest))
        return cut


def check_texts(sample: Sample) -> None:
    """RowError for weights that cannot be read, or that the step's pipeline cannot be given."""
    if sample.weighted and not takes_embeddings(sample.system.pipeline):
        raise RowError("invalid_prompt", f"{sample.system.pipeline} takes no weighted prompts")
    for text in sample.opened.row.texts.values() if sample.weighted else ():
        parse(text or "")
