"""A row's clip_skip reaches the text encoder's earlier layers."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from actors.engine.quirks.clip_skip import enable_clip_skip
from models.demo_cache import demo_checkpoint


@cache
def pipeline() -> Any:
    loaded = StableDiffusionPipeline.from_pretrained(demo_checkpoint("sd"), use_safetensors=True)
    enable_clip_skip(loaded.text_encoder)
    return loaded


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_takes_an_earlier_layer_and_norms_it(clip_skip: int) -> None:
    """1 is the last layer but one, as diffusers documents it."""
    encoder, tokenizer = pipeline().text_encoder, pipeline().tokenizer
    tokens = tokenizer("a fox", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        layers = encoder(tokens, output_hidden_states=True).hidden_states
        expected = encoder.final_layer_norm(layers[-1 - clip_skip])

        made, _ = pipeline().encode_prompt("a fox", "cpu", 1, False, clip_skip=clip_skip)
        unskipped, _ = pipeline().encode_prompt("a fox", "cpu", 1, False)

    torch.testing.assert_close(made, expected)
    assert (made - unskipped).abs().max() > 1e-3


def test_the_encoders_weights_stay_as_they_are() -> None:
    """No weight is added or doubled, and enabling twice is enabling once."""
    untouched = StableDiffusionPipeline.from_pretrained(demo_checkpoint("sd"), use_safetensors=True)
    names = list(untouched.text_encoder.state_dict())
    encoder = copy.deepcopy(pipeline().text_encoder)

    enable_clip_skip(encoder)

    assert list(encoder.state_dict()) == names
    assert encoder.text_model.final_layer_norm is encoder.final_layer_norm


def test_a_pipeline_without_a_text_encoder_is_left_alone() -> None:
    """An image variation pipeline has none."""
    enable_clip_skip(None)
