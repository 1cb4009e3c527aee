"""One checkpoint in memory, with every pipeline and scheduler that its components serve."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from actors.checkpoints.adapters.adapter_files import on_this_machine
from actors.engine.adapters.control_nets import idle_answer, scaled_by_row
from actors.engine.adapters.image_encoders import ImageEncoder
from actors.engine.adapters.ip_adapters import IpAdapters
from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.merge_points import find_merge_points
from actors.engine.batching.merged_modules import MergePoint
from actors.engine.batching.row_settings import RowSettings, all_settings
from actors.engine.pipelines.loading import LoadOptions, load
from actors.engine.pipelines.pipeline_builder import build_pipeline, is_union, new_scheduler
from actors.engine.pipelines.safety_checker import checker_of
from actors.engine.pipelines.shared_modules import SharedModules
from schemas.spec.job_spec import ModelSpec
from schemas.systems.image_prompts import ImagePrompt
from schemas.systems.model_card import AdapterFile, IpAdapterCard
from schemas.systems.system_table import System

if TYPE_CHECKING:
    from actors.engine.adapters.lora_cache import LoraCache

LDM3D_BYTES = 6
"""Channels of LDM3D's first VAE: three for the image, one empty, and two for the bytes of the depth."""

ADAPTER_BYTES = 1 << 30
"""The most bytes of one model's adapters of a kind in memory, where nothing else is said."""

SCHEDULERS_KEPT = 64
"""How many schedulers with their options a model keeps; one that was dropped is built again when needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAdapters:
    """The adapters that rows of a model may have, and that are loaded when a row has them."""

    loras: Mapping[str, AdapterFile] = field(default_factory=dict)
    """LoRAs by name."""
    ip_adapters: Mapping[str, IpAdapterCard] = field(default_factory=dict)
    """IP-Adapters by name."""
    capacity_bytes: int = ADAPTER_BYTES
    """The most bytes of each kind that are in memory."""


NO_ADAPTERS = ModelAdapters()


class LoadedModel:
    """One checkpoint's components on a device, and the pipelines built from them."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        options: LoadOptions,
        shared: SharedModules | None = None,
        adapters: ModelAdapters = NO_ADAPTERS,
    ) -> None:
        self.device = options.device
        self._base = load(name, spec, options, shared or SharedModules())
        self.safety_checker = checker_of(self._base)
        self._pipelines: dict[tuple[str, ...], Any] = {}
        self.nets: OrderedDict[str, Any] = OrderedDict()
        """The ControlNets in memory, by name; the last one was used last."""
        self.encoders: dict[tuple[str, str, str], ImageEncoder] = {}
        """The image encoders of IP-Adapters in memory, by `encoder_key`."""
        loras, self._ip_cards = adapters.loras, adapters.ip_adapters
        self._loras: LoraCache | None = None
        if loras:
            # Deferred: it imports peft, which a job without LoRAs does without.
            from actors.engine.adapters import lora_cache

            self._loras = lora_cache.LoraCache(
                self._base,
                lambda lora: on_this_machine(loras[lora], options.deadline_s),
                adapters.capacity_bytes,
            )
        self._ip_adapters: IpAdapters | None = None
        if self._ip_cards:
            self._ip_adapters = IpAdapters(
                self._base,
                lambda name: on_this_machine(self._ip_cards[name].file, options.deadline_s, "IP-Adapter"),
                adapters.capacity_bytes,
            )
        self._fresh_scheduler = lru_cache(SCHEDULERS_KEPT)(partial(new_scheduler, self._base.scheduler))

    @property
    def components(self) -> Mapping[str, Any]:
        """The checkpoint's components by name: modules, tokenizers, the scheduler and so on."""
        return self._base.components  # type: ignore[no-any-return]

    @property
    def weight_bytes(self) -> int:
        """The size of its weights in memory, in bytes."""
        return weight_bytes(self.modules)

    @property
    def modules(self) -> Mapping[str, Any]:
        """The checkpoint's components by name, and its ControlNets and image encoders in memory."""
        nets = {_point_of(net): module for net, module in self.nets.items()}
        return {**self.components, **nets, **self._encoder_modules()}

    def _encoder_modules(self) -> dict[str, Any]:
        """The image encoders in memory, each under the name of the first of the IP-Adapters that have it."""
        first = {card.encoder_key: name for name, card in reversed([*self._ip_cards.items()])}
        return {f"image_encoder.{first[key]}": each.module for key, each in self.encoders.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its UNet."""
        dtype: torch.dtype = self.components["unet"].dtype
        return dtype

    def drop_net(self, net: str) -> None:
        """Drop a ControlNet, and the pipelines that have it."""
        del self.nets[net]
        self._pipelines = {key: pipeline for key, pipeline in self._pipelines.items() if net not in key[1:]}

    def merge_points(self) -> Iterator[MergePoint]:
        """The modules whose calls are merged: the checkpoint's, and those of its adapters in memory."""
        yield from find_merge_points(self.components, self.row_settings)
        for name, module in self._encoder_modules().items():
            yield MergePoint(name=name, module=module, stage=Stage.ENCODE)
        for net, module in self.nets.items():
            yield MergePoint(
                name=_point_of(net),
                module=module,
                stage=Stage.CONTROL,
                # A union has a scale for each of its images, which belongs to the batch key.
                numbers=frozenset({"timestep"} if is_union(module) else {"timestep", "conditioning_scale"}),
                forward=None if is_union(module) else scaled_by_row(module),
                known_answer=idle_answer(module),
            )

    @property
    def needs_plain_calls(self) -> bool:
        """Whether each image needs a plain call of its own, as with `batching.exact`.

        LDM3D's VAE of 6 channels gives the two bytes of a depth as two channels, and each is rounded by
        itself. A change in the last bit of a latent, from batching, could change a depth by 1/256 of its
        range.
        """
        return bool(self.components["vae"].config.get("out_channels") == LDM3D_BYTES)

    @contextmanager
    def with_loras(self, weights: Mapping[str, float], *, alone: bool) -> Iterator[None]:
        """While the block runs, these LoRAs are in memory, and a call may use them.

        `alone`: the modules are called for nobody else, and the LoRAs are set as plain diffusers sets them.
        Otherwise rows of merged batches have their own. SpecError if a LoRA cannot be loaded.
        """
        if not weights:
            yield
            return
        assert self._loras is not None, "the plan refuses LoRAs that the model has not"
        loras = self._loras
        with loras.held(weights), loras.plain(weights) if alone else nullcontext():
            yield

    @contextmanager
    def image_prompted(
        self, call: Any, pipeline: Any, prompt: ImagePrompt | None, pictures: Sequence[Any], *, alone: bool
    ) -> Iterator[dict[str, Any]]:
        """While the block runs, the rows of a call of the pipeline have these pictures as image prompts.

        Yields further arguments of the pipeline. `alone`: as for LoRAs. SpecError if the IP-Adapter cannot be
        loaded.
        """
        if prompt is None:
            yield {}
            return
        assert self._ip_adapters is not None, "the plan refuses IP-Adapters that the model has not"
        encoder = self.encoders[self._ip_cards[prompt.ip_adapter].encoder_key]
        if alone:
            with self._ip_adapters.plain(pipeline, prompt, pictures, encoder) as arguments:
                yield arguments
        else:
            with self._ip_adapters.in_batches(call, prompt, pictures, encoder):
                yield {}

    def row_settings(self, component: str) -> RowSettings | None:
        """How the adapters of a component are set for the rows of a merged batch; None if there are none."""
        settings: list[RowSettings] = [self._loras.settings_of(component)] if self._loras else []
        if self._ip_adapters and component == "unet":
            settings.append(self._ip_adapters.settings)
        return all_settings(settings)

    def close(self) -> None:
        """Take the model's LoRAs out of modules that other models may go on with."""
        if self._loras:
            self._loras.close()

    def pipeline(
        self, system: System, scheduler: str | None, options: str | None = None, nets: Sequence[str] = ()
    ) -> Any:
        """The system's pipeline on the shared components, with a scheduler of its own for this call.

        `options` is a JSON text; `nets` are the ControlNets that guide the call, which are in memory.
        RowError if diffusers does not accept the options.
        """
        key = system.pipeline, *nets
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            modules = [
                self.nets[net] for net in (nets[:1] if nets and is_union(self.nets[nets[0]]) else nets)
            ]
            pipeline = self._pipelines[key] = build_pipeline(system, self._base, modules)
        # Calls run side by side, and both keep the state of a call (diffusers 0.42.1): the pipeline keeps its
        # arguments, the scheduler its timesteps and past model outputs.
        pipeline = copy.copy(pipeline)
        fresh = self._fresh_scheduler(scheduler, options)
        # Its configuration is not copied: it is frozen, and copying it is half of the work.
        pipeline.scheduler = copy.deepcopy(fresh, {id(fresh.config): fresh.config})
        return pipeline


def _point_of(net: str) -> str:
    """The name under which the calls of a ControlNet are counted."""
    return f"controlnet.{net}"


def weight_bytes(components: Mapping[Any, Any]) -> int:
    """The size of these components' weights in bytes; a storage that modules share counts once."""
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
