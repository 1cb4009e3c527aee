"""Tokens that were learned by textual inversion: added to a model's tokenizers and text encoders."""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file

from actors.checkpoints.adapters.adapter_files import on_this_machine
from actors.engine.adapters.false_reports import without_false_reports
from schemas.systems.model_card import EmbeddingFile


def learn_tokens(pipeline: Any, embeddings: Mapping[str, EmbeddingFile], deadline_s: float) -> None:
    """Add these tokens to the pipeline's tokenizers, and their vectors to its text encoders.

    Tokens get their numbers in this order. SpecError if a file is not the one that was planned.
    """
    files = {
        token: load_file(on_this_machine(file, deadline_s, "embedding")) for token, file in embeddings.items()
    }
    encoders = dict.fromkeys(encoder for file in embeddings.values() for encoder in file.vectors)
    for encoder in encoders:
        # transformers 5.23 tells how it fills new rows of the encoder, all of which are replaced.
        with without_false_reports():
            pipeline.load_textual_inversion(
                [files[token][file.vectors[encoder].tensor] for token, file in embeddings.items()],
                token=[*embeddings],
                tokenizer=getattr(pipeline, encoder.replace("text_encoder", "tokenizer")),
                text_encoder=getattr(pipeline, encoder),
            )
