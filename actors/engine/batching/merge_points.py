"""The merge points of a checkpoint: all modules that do the work of any system's pipeline."""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.merged_modules import MergePoint
from actors.engine.batching.row_settings import RowSettings

# The VAE's two halves, and not its `encode` and `decode`, which wrap results in objects that have no rows.
_ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder", "depth_estimator", "vae.encoder")
_DECODERS = ("vae.decoder",)
_RESIDUALS = frozenset({"down_block_additional_residuals", "mid_block_additional_residual"})
"""What ControlNets give to the UNet, which adds it to the results of its blocks."""
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def find_merge_points(
    components: Mapping[str, Any], settings_of: Callable[[str], RowSettings | None] = lambda _: None
) -> Iterator[MergePoint]:
    """The merge points of the modules that these components have.

    `settings_of` gives what calls set of a component beside its arguments.
    """
    for stage, names in ((Stage.ENCODE, _ENCODERS), (Stage.DENOISE, ("unet",)), (Stage.DECODE, _DECODERS)):
        for name in names:
            owner, _, part = name.partition(".")
            if components.get(owner) is not None:
                module = attrgetter(part)(components[owner]) if part else components[owner]
                yield MergePoint(
                    name=name,
                    module=module,
                    stage=stage,
                    numbers=frozenset({"timestep"}),
                    caches_rows=name in _TEXT_ENCODERS,
                    settings=settings_of(name),
                    additions=_RESIDUALS if name == "unet" else frozenset(),
                )
