"""A checkpoint's safety checker as a witness: it says what it sees and changes nothing.

diffusers 0.42.1 runs the checker inside the pipeline, where it blackens what it flags in place. Safe reduces
its verdicts to one for the batch, the x4 upscaler unpacks a third result that Stable Diffusion's checker has
not, and a crop is judged before it is pasted back. So pipelines are built without it, and it is shown the
finished pictures.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.images.encoding import Pixels

# For each flagged picture it says that a black one will be returned, which is not so here.
logging.getLogger("diffusers.pipelines.stable_diffusion.safety_checker").setLevel(logging.ERROR)


class SafetyChecker:
    """The checker with its feature extractor, on the device and in the dtype in which it was loaded."""

    def __init__(self, checker: Any, feature_extractor: Any) -> None:
        self.checker = checker
        self._feature_extractor = feature_extractor

    @torch.inference_mode()
    def flags(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Its verdict on each picture: what the pipeline's own `run_safety_checker` would have said."""
        features = self._feature_extractor([Image.fromarray(each) for each in pictures], return_tensors="pt")
        seen = features.pixel_values.to(self.checker.device, self.checker.dtype)
        # It blackens what it flags in `images`; these are nobody's.
        stand_ins = [np.zeros(0) for _ in pictures]
        return [bool(flag) for flag in self.checker(clip_input=seen, images=stand_ins)[1]]


def checker_of(pipeline: Any) -> SafetyChecker | None:
    """The checker that a loaded pipeline came with; None where it has none."""
    checker = getattr(pipeline, "safety_checker", None)
    feature_extractor = getattr(pipeline, "feature_extractor", None)
    if checker is None or feature_extractor is None:
        return None
    return SafetyChecker(checker, feature_extractor)
