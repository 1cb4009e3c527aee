"""Checkpoints in memory: each loaded once, shared by every pipeline that can use its components."""

import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from actors.checkpoints.component_files import components_with_weights, files_in
from actors.checkpoints.hub import hub_folder
from actors.checkpoints.single_files.single_file import repository_of
from actors.engine.adapters.control_nets import SharedNets
from actors.engine.adapters.image_encoders import SharedEncoders
from actors.engine.pipelines.loaded_model import LoadedModel, ModelAdapters, weight_bytes
from actors.engine.pipelines.loading import LoadOptions, on_this_machine
from actors.engine.pipelines.prepared_folders import encoder_folder
from actors.engine.pipelines.shared_modules import SharedModules
from actors.engine.pipelines.signs_of_work import SignsOfWork
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import AdapterFile, ControlNetCard, IpAdapterCard

logger = logging.getLogger(__name__)

ADAPTER_SHARE = 8
"""The LoRAs of a model take at most one eighth of the memory for weights, and so do its IP-Adapters."""


class ModelCache:
    """The models in a worker's memory, up to a number of bytes of weights.

    Beyond it, the model that was used longest ago is dropped first.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        options: LoadOptions,
        capacity_bytes: int,
        loras: Mapping[str, Mapping[str, AdapterFile]] | None = None,
        controlnets: Mapping[str, Mapping[str, ControlNetCard]] | None = None,
        ip_adapters: Mapping[str, Mapping[str, IpAdapterCard]] | None = None,
    ) -> None:
        """`loras`, `controlnets` and `ip_adapters`: those that rows may have, by model and name."""
        self._specs = specs
        self._loras = loras or {}
        self._controlnets = controlnets or {}
        self._ip_adapters = ip_adapters or {}
        self._shared_nets = SharedNets(
            options.device, channels_last=options.channels_last, deadline_s=options.deadline_s
        )
        self._shared_encoders = SharedEncoders(
            options.device, lambda adapter, card: encoder_folder(adapter, card, options.deadline_s)
        )
        self._options = options
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._shared = SharedModules()
        self.signs = SignsOfWork()
        """Whether a model is being loaded, for those who wait for it."""
        self.num_loads = 0
        self.load_seconds: defaultdict[str, float] = defaultdict(float)
        """How long each model took to load so far, with its ControlNets and image encoders."""

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._options.device

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models in memory; the last one was used last."""
        return tuple(self._models)

    def get(self, name: str, nets: Collection[str] = (), ip_adapters: Collection[str] = ()) -> LoadedModel:
        """The model with this name, these ControlNets and the image encoders of these IP-Adapters.

        They are loaded now if they are not in memory.
        """
        if name not in self._models:
            # Nothing arrives there if the checkpoint is not in a repository.
            folder = hub_folder(repository_of(self._specs[name].checkpoint))
            with self._loading(name, folder, name):
                self._load(name)
        self._models.move_to_end(name)
        model = self._models[name]
        for net in sorted(nets):
            if net not in model.nets:
                self._load_net(name, net, nets)
            model.nets.move_to_end(net)
        for adapter in sorted(ip_adapters):
            if self._ip_adapters[name][adapter].encoder_key not in model.encoders:
                self._load_encoder(name, adapter)
        return model

    @contextmanager
    def _loading(self, model: str, folder: Path | None, what: str) -> Iterator[None]:
        """Look for signs of work within the block, and count it as the model's loading.

        `folder`: where files of `what` is loaded may arrive.
        """
        begun = time.monotonic()
        with self.signs.watched(folder, f"loading {what}"):
            yield
        self.load_seconds[model] += time.monotonic() - begun

    def _load(self, name: str) -> None:
        spec = on_this_machine(name, self._specs[name], self._options)
        self._make_room(spec)
        self._models[name] = LoadedModel(
            name,
            spec,
            self._options,
            self._shared,
            ModelAdapters(
                loras=self._loras.get(name, {}),
                ip_adapters=self._ip_adapters.get(name, {}),
                capacity_bytes=self._capacity_bytes // ADAPTER_SHARE,
            ),
        )
        self.num_loads += 1
        self._evict(keep=name)

    def _load_net(self, name: str, net: str, needed: Collection[str]) -> None:
        """Load a ControlNet of a model. Other models make room, then its own ControlNets that are idle."""
        model, card = self._models[name], self._controlnets[name][net]
        while self._bytes() + card.size_bytes > self._capacity_bytes:
            idle = [other for other in model.nets if other not in needed]
            if len(self._models) > 1:
                self._drop_oldest()
            elif idle:
                model.drop_net(idle[0])
            else:
                break
        with self._loading(name, hub_folder(card.path), net):
            model.nets[net] = self._shared_nets.get(net, card, model.dtype)

    def _load_encoder(self, name: str, adapter: str) -> None:
        """Load the image encoder of a model's IP-Adapter. Other models make room."""
        model, card = self._models[name], self._ip_adapters[name][adapter]
        with self._loading(name, hub_folder(card.image_encoder.path), adapter):
            model.encoders[card.encoder_key] = self._shared_encoders.get(adapter, card, model.dtype)
        self._evict(keep=name)

    def _make_room(self, spec: ModelSpec) -> None:
        """Drop models until one with this spec fits in memory beside the others; its size is that on disk."""
        components = components_with_weights(files_in(Path(spec.checkpoint)), spec.variant)
        size_bytes = sum(component.size_bytes for component in components)
        while self._models and self._bytes() + size_bytes > self._capacity_bytes:
            self._drop_oldest()

    def _evict(self, keep: str) -> None:
        while self._bytes() > self._capacity_bytes and next(iter(self._models)) != keep:
            self._drop_oldest()

    def _bytes(self) -> int:
        modules = [module for model in self._models.values() for module in model.modules.values()]
        return weight_bytes(dict(enumerate(modules)))

    def _drop_oldest(self) -> None:
        name, model = self._models.popitem(last=False)
        model.close()
        logger.info("dropped model=%s to make room", name)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
