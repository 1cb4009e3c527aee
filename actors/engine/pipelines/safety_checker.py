"""A checkpoint's safety checker, run on finished images; it flags them and does not change them.

diffusers 0.42.1 runs the checker inside the pipeline, which has four faults: it blackens flagged images in
place; Safe reduces its verdicts to one for the batch; the x4 upscaler unpacks a third result, which Stable
Diffusion's checker does not give; and a crop is judged before it is pasted back. So pipelines are built
without their checker.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.images.encoding import Pixels

# diffusers 0.42.1 logs for each flagged image that a black one will be returned, which is not so here.
logging.getLogger("diffusers.pipelines.stable_diffusion.safety_checker").setLevel(logging.ERROR)


class SafetyChecker:
    """The checker with its feature extractor, on the device and in the dtype in which it was loaded."""

    def __init__(self, checker: Any, feature_extractor: Any) -> None:
        self.checker = checker
        self._feature_extractor = feature_extractor

    @torch.inference_mode()
    def flags(self, images: Sequence[Pixels]) -> list[bool]:
        """For each image whether it is flagged: the verdict of the pipeline's own `run_safety_checker`."""
        features = self._feature_extractor([Image.fromarray(image) for image in images], return_tensors="pt")
        clip_input = features.pixel_values.to(self.checker.device, self.checker.dtype)
        # It blackens flagged images in place; these empty ones are not used.
        blackened = [np.zeros(0) for _ in images]
        return [bool(flag) for flag in self.checker(clip_input=clip_input, images=blackened)[1]]


def checker_of(pipeline: Any) -> SafetyChecker | None:
    """The checker of a loaded pipeline; None if it has none."""
    checker = getattr(pipeline, "safety_checker", None)
    feature_extractor = getattr(pipeline, "feature_extractor", None)
    if checker is None or feature_extractor is None:
        return None
    return SafetyChecker(checker, feature_extractor)
