"""Training of the depth estimator, which depth-to-image needs: it tells the depth from a picture."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import DPTForDepthEstimation

from tools.shapes import model_parts as parts
from tools.shapes import world
from tools.shapes.training import Stage, train

BATCH = 16


def train_estimator(stage: Stage, folder: Path) -> DPTForDepthEstimation:
    """A dense prediction transformer that tells the drawn depth from the picture."""
    torch.manual_seed(stage.seed)
    processor = parts.depth_processor()

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        pictures, depths = world.draw(world.some_scenes(rng, BATCH), rng)
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
        guessed = modules["depth_estimator"](pixels).predicted_depth
        wanted = functional.interpolate(torch.from_numpy(depths)[:, None], guessed.shape[-2:], mode="area")
        return functional.smooth_l1_loss(guessed, wanted[:, 0], beta=0.1)

    estimator = parts.depth_estimator()
    # Its last step cuts off what is below 0, as the background nearly is: nothing would be learned there.
    cut = estimator.head.head[-1]
    estimator.head.head[-1] = nn.Identity()
    trained = train(stage, nn.ModuleDict({"depth_estimator": estimator}), loss_of, folder)["depth_estimator"]
    trained.head.head[-1] = cut
    return trained
