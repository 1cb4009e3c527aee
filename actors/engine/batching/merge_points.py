"""Which of a checkpoint's modules are merged: all that do the work of any system's pipeline."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from actors.engine.batching.merged_modules import EntryPoint, Stage

# A VAE's two halves and not its `encode` and `decode`, which wrap them in objects that have no rows.
_BEFORE = ("text_encoder", "text_encoder_2", "image_encoder", "depth_estimator", "vae.encoder")
_AFTER = ("vae.decoder", "safety_checker.vision_model")
_READERS = ("text_encoder", "text_encoder_2")


def entry_points(components: Mapping[str, Any]) -> Iterator[EntryPoint]:
    """Those of `components` that are there."""
    for stage, names in ((Stage.BEFORE, _BEFORE), (Stage.MAIN, ("unet",)), (Stage.AFTER, _AFTER)):
        for name in names:
            owner, _, part = name.partition(".")
            if components.get(owner) is not None:
                module = attrgetter(part)(components[owner]) if part else components[owner]
                yield EntryPoint(
                    name=name,
                    module=module,
                    stage=stage,
                    numbers=frozenset({"timestep"}),
                    remembers=name in _READERS,
                )
