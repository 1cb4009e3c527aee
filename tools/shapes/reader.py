"""Training of the text encoder: it learns which facts a prompt tells, and which it leaves open.

It is trained before the UNet and without it, as is Stable Diffusion's text encoder, which is CLIP's.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from tools.shapes import model_parts as parts
from tools.shapes import world
from tools.shapes.training import Stage, train

BATCH = 64
NAMES = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "background": tuple(world.COLOURS),
    "size": tuple(world.RADII),
    "position": tuple(world.POSITIONS),
}


def train_text_encoder(stage: Stage, tokenizer: CLIPTokenizer, folder: Path) -> CLIPTextModel:
    """A trained text encoder: its output at each token after the prompt tells the scene."""
    torch.manual_seed(stage.seed)
    heads = {name: nn.Linear(parts.TEXT_WIDTH, len(values) + 1) for name, values in NAMES.items()}
    modules = nn.ModuleDict({"text_encoder": parts.text_encoder(tokenizer), "heads": nn.ModuleDict(heads)})

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        scenes = world.some_scenes(rng, BATCH)
        prompts, told_facts = zip(*(world.some_prompt(scene, rng) for scene in scenes), strict=True)
        ids = tokenize(tokenizer, list(prompts))
        after = ids == tokenizer.eos_token_id
        states = modules["text_encoder"](ids).last_hidden_state[after]
        losses = []
        for name, values in NAMES.items():
            facts = [
                getattr(scene, name) if name in told else None
                for scene, told in zip(scenes, told_facts, strict=True)
            ]
            classes = torch.tensor([(*values, None).index(fact) for fact in facts])
            losses.append(
                functional.cross_entropy(
                    modules["heads"][name](states), classes[:, None].expand_as(ids)[after]
                )
            )
        return torch.stack(losses).sum()

    return train(stage, modules, loss_of, folder)["text_encoder"]


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """The prompts' token ids, padded as a pipeline pads them."""
    padded = tokenizer(
        prompts, padding="max_length", max_length=parts.NUM_TOKENS, truncation=True, return_tensors="pt"
    )
    return padded.input_ids
