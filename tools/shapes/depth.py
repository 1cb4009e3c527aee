"""Training of the depth estimator, which depth-to-image needs: it estimates the depth of an image."""

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
    """A trained dense prediction transformer that estimates the depth of a drawn image."""
    torch.manual_seed(stage.seed)
    processor = parts.depth_processor()

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        images, depths = world.draw(world.some_scenes(rng, BATCH), rng)
        pixels = processor(images=list(images), return_tensors="pt").pixel_values
        estimated = modules["depth_estimator"](pixels).predicted_depth
        drawn = functional.interpolate(torch.from_numpy(depths)[:, None], estimated.shape[-2:], mode="area")
        return functional.smooth_l1_loss(estimated, drawn[:, 0], beta=0.1)

    estimator = parts.depth_estimator()
    # The last layer cuts off values below 0. The background is close to 0, so nothing would be learned there.
    last_layer = estimator.head.head[-1]
    estimator.head.head[-1] = nn.Identity()
    trained = train(stage, nn.ModuleDict({"depth_estimator": estimator}), loss_of, folder)["depth_estimator"]
    trained.head.head[-1] = last_layer
    return trained
