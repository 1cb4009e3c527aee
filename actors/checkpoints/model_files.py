"""A model's files: those of its checkpoint, with the components that the spec names by themselves."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download

from actors.checkpoints.checkpoint_folders import local_folder
from actors.checkpoints.component_files import (
    TEXT_ENCODERS,
    ComponentFiles,
    Files,
    components_with_weights,
    derived_json,
    files_in,
    files_on_hub,
    weights_of,
)
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.named_components import composed_index, files_of_component, read_components
from actors.checkpoints.single_files.derived_folders import derived_files
from actors.checkpoints.single_files.single_file import is_single_file, read_single_file
from schemas.spec.job_spec import ModelSpec


def bytes_shared(models: Mapping[str, ModelSpec]) -> int:
    """The bytes of weights that are not loaded twice, because another checkpoint has the very same component.

    A repository that is not on this machine and cannot be reached counts as sharing nothing.
    """
    if len(models) < 2:
        return 0
    alike: dict[object, list[ComponentFiles]] = defaultdict(list)
    for spec in models.values():
        with suppress(*HUB_ERRORS):
            for component in shareable_components(files_of(spec), spec):
                alike[(spec.dtype, component.lookup_key())].append(component)
    shared_bytes = 0
    for group in alike.values():
        if len(group) > 1:
            distinct = {component.weights_hash() for component in group}
            shared_bytes += group[0].size_bytes * (len(group) - len(distinct))
    return shared_bytes


def shareable_components(files: Files, model: ModelSpec) -> list[ComponentFiles]:
    """The components among a model's files that models with equal ones share.

    Text encoders that learn tokens are not among them: other models must not find these.
    """
    components = components_with_weights(files, model.variant)
    if not model.embeddings:
        return components
    return [component for component in components if component.name not in TEXT_ENCODERS]


def files_of(model: ModelSpec, *, listed: bool = False) -> Files:
    """A model's files on this machine, or those on the Hub if the weights are not downloaded yet.

    `listed`: ask the Hub in any case, because its cache may have only half of a download. A model with named
    components must have the subfolders of its card.
    """
    files = _checkpoint_files(model, listed=listed)
    if not model.components:
        return files
    index = json.loads(files["model_index.json"].read())
    own = {name: file for name, file in files.items() if name.partition("/")[0] not in model.components}
    for name, spec in model.components.items():
        own |= files_of_component(name, spec, model.variant, listed=listed)
    return own | {"model_index.json": derived_json(composed_index("", index, read_components("", model)))}


def _checkpoint_files(model: ModelSpec, *, listed: bool) -> Files:
    folder = local_folder(model)
    if folder is not None:
        return files_in(folder)
    if is_single_file(model.checkpoint):
        return derived_files(read_single_file("", model))
    if not listed:
        index = hf_hub_download(model.checkpoint, "model_index.json", revision=model.revision)
        files = files_in(Path(index).parent)
        if weights_of(files, "unet", model.variant):
            return files
    return files_on_hub(model.checkpoint, model.revision)
