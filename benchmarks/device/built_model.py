"""A model that is built in memory and whose weights are never written to a file."""

import copy
import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.shared_modules import SharedModules
from actors.engine.pipelines.signs_of_work import SignsOfWork
from schemas.spec.job_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A pipeline in memory, and a folder with everything of its checkpoint but the weights."""

    pipeline: Any
    folder: Path

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, folder: Path) -> "BuiltModel":
        """The model of a pipeline; `folder` is filled with its configuration, which a plan reads."""
        pipeline.save_config(folder)
        for name, component in pipeline.components.items():
            if isinstance(component, torch.nn.Module):
                _save_without_weights(component, folder / name)
            elif component is not None:
                component.save_pretrained(folder / name)
        return cls(pipeline=pipeline, folder=folder)

    def copied(self) -> Any:
        """A pipeline with weights of its own, which may be compiled and laid out in memory as one likes."""
        return copy.deepcopy(self.pipeline)


def _save_without_weights(module: Any, folder: Path) -> None:
    """Save the module's configuration, and a safetensors file without tensors.

    The file names its component, so that no two components have equal files.
    """
    if isinstance(module, ModelMixin):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
    header = json.dumps({"__metadata__": {"component": folder.name}}).encode()
    name = "diffusion_pytorch_model" if isinstance(module, ModelMixin) else "model"
    (folder / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


class BuiltModels:
    """The one model of an engine, with its own copy of a built model's weights; used as a ModelCache is."""

    num_loads = 1

    def __init__(self, name: str, built: BuiltModel, spec: ModelSpec, options: LoadOptions) -> None:
        weights = built.copied()
        in_memory = SharedModules()
        in_memory.add(built.folder, spec, weights.dtype, weights.components)
        # Modules that are in memory are not loaded: only the tokenizers and the scheduler are read.
        self._model = LoadedModel(name, spec, options, in_memory)
        self.names = (name,)
        self.signs = SignsOfWork()
        self.device = options.device
        self.load_seconds: defaultdict[str, float] = defaultdict(float)

    def get(self, name: str, nets: Collection[str] = (), ip_adapters: Collection[str] = ()) -> LoadedModel:
        """The model. It has no ControlNets."""
        return self._model
