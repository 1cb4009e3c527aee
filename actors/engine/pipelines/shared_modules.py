"""Modules that several checkpoints have in common, and that are in memory only once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import ref

import torch

from actors.checkpoints.component_files import ComponentFiles, files_in
from actors.checkpoints.model_files import shareable_components
from schemas.spec.job_spec import ModelSpec


class SharedModules:
    """The modules in memory, by the content of their files: two checkpoints with the same VAE share it.

    It keeps no module alive: a module is freed with the last model that uses it.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[object, ...], list[tuple[ComponentFiles, ref[torch.nn.Module]]]] = {}

    def known(self, folder: Path, spec: ModelSpec, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
        """The checkpoint's components that are in memory already, by name."""
        known = {}
        for component in shareable_components(files_in(folder), spec):
            for other, module in self._alike.get((dtype, component.lookup_key()), []):
                # Gigabytes are hashed only here, where a component of the same kind and size is in memory.
                alive = module()
                if alive is not None and other.weights_hash() == component.weights_hash():
                    known[component.name] = alive
        return known

    def add(self, folder: Path, spec: ModelSpec, dtype: torch.dtype, components: Mapping[str, Any]) -> None:
        """Remember a checkpoint's components."""
        for component in shareable_components(files_in(folder), spec):
            module = components.get(component.name)
            if isinstance(module, torch.nn.Module):
                alike = self._alike.setdefault((dtype, component.lookup_key()), [])
                alike[:] = [pair for pair in alike if pair[1]() is not None]
                alike.append((component, ref(module)))
