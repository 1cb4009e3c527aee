"""A checkpoint's safety checker, run on finished images; it flags them and does not change them.

diffusers 0.42.1 runs the checker inside the pipeline, which has four faults: it blackens flagged images in
place; Safe reduces its verdicts to one for the batch; the x4 upscaler unpacks a third result, which Stable
Diffusion's checker does not give; and a crop is judged before it is pasted back. So pipelines are built
without their checker. The checker itself compares the image with each concept one by one, and waits for the
device twenty times an image; here its work is cut in three parts, and none of them waits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from PIL import Image

from actors.images.encoding import Pixels

Distances = npt.NDArray[np.float32]
"""(N, concepts): how like each concept each image is. The first concepts are those of special care."""


class SafetyChecker:
    """The checker with its feature extractor, on the device and in the dtype in which it was loaded."""

    def __init__(self, checker: Any, feature_extractor: Any) -> None:
        self.checker = checker
        self._feature_extractor = feature_extractor
        weights = (checker.special_care_embeds_weights, checker.concept_embeds_weights)
        self._care_thresholds, self._thresholds = (
            weight.detach().float().cpu().numpy() for weight in weights
        )

    def features(self, images: Sequence[Pixels]) -> torch.Tensor:
        """What the vision model reads of the images, (N, 3, side, side), in the host's memory.

        This is the work of the host: milliseconds an image. Any thread can do it.
        """
        features = self._feature_extractor([Image.fromarray(image) for image in images], return_tensors="pt")
        values: torch.Tensor = features.pixel_values.to(self.checker.dtype)
        return values

    @torch.inference_mode()
    def distances(self, pooled: torch.Tensor) -> torch.Tensor:
        """The `Distances` of images, on the device, from the vision model's pooled outputs (N, width)."""
        embeds = self.checker.visual_projection(pooled)
        concepts = (self.checker.special_care_embeds, self.checker.concept_embeds)
        return torch.cat([cosine_distance(embeds, concept) for concept in concepts], dim=1).float()

    def flags(self, distances: Distances) -> list[bool]:
        """For each image whether it is flagged: the verdict of the checker's own `forward`."""
        num_care = len(self._care_thresholds)
        care = np.round(distances[:, :num_care] - self._care_thresholds, 3) > 0
        # An image that needs special care is flagged a little sooner.
        adjustment = np.float32(0.01) * care.any(axis=1, keepdims=True)
        bad = np.round(distances[:, num_care:] - self._thresholds + adjustment, 3) > 0
        return [bool(flag) for flag in bad.any(axis=1)]


def checker_of(pipeline: Any) -> SafetyChecker | None:
    """The checker of a loaded pipeline; None if it has none."""
    checker = getattr(pipeline, "safety_checker", None)
    feature_extractor = getattr(pipeline, "feature_extractor", None)
    if checker is None or feature_extractor is None:
        return None
    return SafetyChecker(checker, feature_extractor)
