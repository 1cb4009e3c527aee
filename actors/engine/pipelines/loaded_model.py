"""One checkpoint in memory, with every pipeline and scheduler that its components serve."""

import copy
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch

from actors.engine.pipelines.loading import LoadOptions, load
from actors.engine.pipelines.pipeline_builder import build_pipeline, new_scheduler
from actors.engine.pipelines.safety_checker import checker_of
from actors.engine.pipelines.shared_modules import SharedModules
from schemas.spec.job_spec import ModelSpec
from schemas.systems.system_table import System

LDM3D_BYTES = 6
"""Channels of LDM3D's first VAE: three of a picture, and two bytes of its depth beside one that is empty."""

SCHEDULERS_KEPT = 64
"""Of a model, each with its options; made again when another one has pushed it out."""


class LoadedModel:
    """One checkpoint's components on a device, and the pipelines built from them."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        options: LoadOptions,
        shared: SharedModules | None = None,
    ) -> None:
        self.device = options.device
        self._base = load(name, spec, options, shared or SharedModules())
        self.safety_checker = checker_of(self._base)
        self._pipelines: dict[str, Any] = {}
        self._fresh_scheduler = lru_cache(SCHEDULERS_KEPT)(partial(new_scheduler, self._base.scheduler))

    @property
    def components(self) -> Mapping[str, Any]:
        """What the checkpoint is made of."""
        return self._base.components  # type: ignore[no-any-return]

    @property
    def weight_bytes(self) -> int:
        """Of its weights in memory."""
        return weight_bytes(self.components)

    @property
    def is_made_alone(self) -> bool:
        """Whether each picture needs a plain call of its own, as with `batching.exact`.

        LDM3D's VAE of 6 channels makes a depth's two bytes side by side, each rounded for itself: what
        company does to the last bit of a latent would be a 256th of the range.
        """
        return bool(self.components["vae"].config.get("out_channels") == LDM3D_BYTES)

    def pipeline(self, system: System, scheduler: str | None, options: str | None = None) -> Any:
        """The system's pipeline on the shared components, with a scheduler of its own for this call.

        `options` is a JSON text; RowError where diffusers does not take them.
        """
        pipeline = self._pipelines.get(system.pipeline)
        if pipeline is None:
            pipeline = self._pipelines[system.pipeline] = build_pipeline(system, self._base)
        # Calls run side by side, and both keep a call's state: the pipeline its arguments, the scheduler its
        # timesteps and past model outputs.
        pipeline = copy.copy(pipeline)
        fresh = self._fresh_scheduler(scheduler, options)
        # Its configuration is frozen, and half of the work.
        pipeline.scheduler = copy.deepcopy(fresh, {id(fresh.config): fresh.config})
        return pipeline


def weight_bytes(components: Mapping[Any, Any]) -> int:
    """Bytes of weights in memory, each tensor's storage counted once however many modules share it."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in components.values()
        if isinstance(module, torch.nn.Module)
        for tensor in _tensors(module)
    }
    return sum(storages.values())


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
