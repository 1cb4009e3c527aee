"""Components that a spec names by themselves, such as another VAE, and whether they fit the checkpoint."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from actors.checkpoints.checkpoint_folders import is_folder_name
from actors.checkpoints.component_files import Files, LocalFile, files_on_hub, weights_of
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.single_files.single_file import refuse_single_file
from actors.checkpoints.sources import (
    ReadJson,
    check_files,
    digest_of,
    files_directly_in,
    folder_reader,
    hashes_of,
    hub_reader,
)
from schemas.errors import SpecError
from schemas.spec.component_spec import ComponentSpec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ComponentCard
from schemas.wording.nearest import did_you_mean

_CONFIGS = {
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
    "low_res_scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
"""The configuration files of components that do not have a config.json."""

_CONVERTERS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""The classes of diffusers that convert components which are published as single files."""

_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 1280,
    "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "scaling_factor": 0.18215}
_TEXT = {"hidden_size": 512, "vocab_size": 49408, "max_position_embeddings": 77}
FIT: Mapping[str, Mapping[str, Any]] = {
    "unet": _UNET,
    "vae": _VAE,
    "text_encoder": _TEXT,
    "text_encoder_2": {**_TEXT, "projection_dim": 512},
    "image_encoder": {"projection_dim": 512},
}
"""By component, the keys in which it must be equal to the one that it replaces, each with its class's default
(diffusers 0.42.1, transformers 5.23). They are those that other components must agree with."""

ADDED: Mapping[str, list[str]] = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
"""Components that a checkpoint need not have, with their entries in model_index.json."""
_CLASS_KEYS = ("_class_name", "tokenizer_class", "image_processor_type", "feature_extractor_type")
"""The keys under which the configurations of diffusers and transformers name a class. Models of transformers
have `architectures`."""
_ANY_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What a tokenizer's configuration may say whatever its class."""
_SPELLINGS = re.compile(r"(?:FeatureExtractor|ImageProcessor)(?:Fast|Pil)?|(?<=Tokenizer)Fast")
"""The parts of names in which classes of transformers differ that do the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedComponent:
    """A component that replaces the checkpoint's own."""

    key: str
    """Its key in the spec."""
    name: str
    source: ComponentCard
    config: Mapping[str, Any]


def read_components(name: str, model: ModelSpec) -> dict[str, NamedComponent]:
    """The named components of the model `name`; SpecError for one that cannot be read."""
    return {
        part: read_component(f"models.{name}.components.{part}", part, spec)
        for part, spec in model.components.items()
    }


def read_component(key: str, name: str, spec: ComponentSpec) -> NamedComponent:
    """The component `name` that the entry `key` of the spec names; SpecError if it cannot be read."""
    if not name.isidentifier():
        raise SpecError(f"{key}: {name!r:.80} is not the name of a component")
    folder = component_folder(spec)
    refuse_single_file(key, spec.path, _CONVERTERS.get(name, ""))
    if folder is None and is_folder_name(spec.path):
        raise SpecError(f"{key}: the folder {spec.path} does not exist")
    errors = []
    for subfolder in _subfolders(name, spec):
        file = f"{subfolder}/{config_of(name)}".lstrip("/")
        try:
            if folder is None:
                commit, read_json = hub_reader(key, spec.path, spec.revision, file)
                source = ComponentCard(path=spec.path, revision=commit, subfolder=subfolder)
            else:
                read_json = folder_reader(key, folder)
                read_json(file)
                source = _card_of_folder(key, folder, subfolder)
        except SpecError as error:
            errors.append(error)
        else:
            return NamedComponent(key=key, name=name, source=source, config=read_json(file))
    raise errors[-1]


def _subfolders(name: str, spec: ComponentSpec) -> list[str]:
    return [name, ""] if spec.subfolder is None else [spec.subfolder]


def component_folder(spec: ComponentSpec) -> Path | None:
    """The folder on this machine that the spec names; None for a repository on the Hub."""
    folder = Path(spec.path).expanduser().absolute()
    return folder if folder.is_dir() else None


def config_of(name: str) -> str:
    """The name of a component's configuration file."""
    return _CONFIGS.get(name, "config.json")


def _card_of_folder(key: str, folder: Path, subfolder: str) -> ComponentCard:
    below = folder / subfolder
    check_files(key, below)
    hashes = hashes_of(key, below, files_directly_in(below))
    return ComponentCard(path=str(folder), revision=digest_of(hashes), subfolder=subfolder, files=hashes)


def composed_index(
    name: str, index: Mapping[str, Any], components: Mapping[str, NamedComponent]
) -> dict[str, Any]:
    """The checkpoint's model_index.json with the named components in it.

    SpecError for a component that the checkpoint has no place for, that is of another class, or that needs
    another one.
    """
    entries = dict(index)
    for part, component in components.items():
        entry = index.get(part)
        if not isinstance(entry, list) or (entry[1] is None and part not in ADDED):
            own = [own for own, value in index.items() if isinstance(value, list) and value[1] is not None]
            hint = did_you_mean(part, own)
            raise SpecError(
                f"{component.key}: the checkpoint of model `{name}` has no {part}{hint}; it has "
                f"{', '.join(own)}"
            )
        entries[part] = _entry(component, ADDED[part] if entry[1] is None else entry)
    checker, extractor = components.get("safety_checker"), entries.get("feature_extractor")
    if checker is not None and not (extractor and extractor[1]):
        source = checker.source.path if checker.source.subfolder else "FOLDER_OR_REPOSITORY"
        raise SpecError(
            f"{checker.key}: a safety checker needs a feature_extractor, and the checkpoint of model "
            f"`{name}` has none; name one too, with models.{name}.components: {{feature_extractor: {source}}}"
        )
    return entries


def _entry(component: NamedComponent, entry: list[str]) -> list[str]:
    """The component's entry in place of the checkpoint's."""
    named = _class_of(component.config)
    if component.name in ("scheduler", "low_res_scheduler") and str(named).isidentifier():
        return [entry[0], str(named)]
    if named is not None and _SPELLINGS.sub("", str(named)) != _SPELLINGS.sub("", str(entry[1])):
        raise SpecError(
            f"{component.key}: {component.source.path} is a {named!s:.80}, and the checkpoint needs a "
            f"{entry[1]}"
        )
    return entry


def _class_of(config: Mapping[str, Any]) -> Any:
    """The class that a configuration names, which may be anything in a damaged one; None if it names none."""
    named = next((config[key] for key in _CLASS_KEYS if config.get(key)), None)
    architectures = config.get("architectures")
    if named is None and isinstance(architectures, list) and architectures:
        return architectures[0]
    return None if named in _ANY_TOKENIZER else named


def check_fit(name: str, components: Mapping[str, NamedComponent], own_json: ReadJson) -> None:
    """Raise SpecError for a component whose configuration does not fit the checkpoint's own.

    `own_json` reads the checkpoint's configurations. One that the checkpoint lacks fits whatever is named.
    """
    for part, component in components.items():
        fit = FIT.get(part)
        if fit is None:
            continue
        own = own_json(f"{part}/config.json")
        for key, default in fit.items() if own else ():
            before, now = (config.get(key, default) for config in (own, component.config))
            if before != now:
                raise SpecError(
                    f"{component.key}: {component.source.path} does not fit the checkpoint of model `{name}`"
                    f": its {key} is {now!r:.60}, the checkpoint's is {before!r:.60}"
                )
        levels, own_levels = (len(config.get("block_out_channels", ())) for config in (component.config, own))
        if part == "vae" and own and levels != own_levels:
            raise SpecError(
                f"{component.key}: {component.source.path} does not fit the checkpoint of model `{name}`: "
                f"its block_out_channels has {levels} levels, the checkpoint's {own_levels}"
            )


def files_of_component(name: str, spec: ComponentSpec, variant: str | None, *, listed: bool = False) -> Files:
    """The component's files in the folder of its name, as the composed checkpoint has them.

    `spec` has a subfolder. `listed`: ask the Hub although its cache seems to have the component. Weights that
    diffusers would not load by their name are not among the files.
    """
    prefix = f"{spec.subfolder}/" if spec.subfolder else ""
    folder = component_folder(spec)
    if folder is not None:
        return _in_folder(name, folder / prefix)
    config = try_to_load_from_cache(spec.path, f"{prefix}{config_of(name)}", revision=spec.revision)
    cached = _in_folder(name, Path(config).parent) if isinstance(config, str) else {}
    if not listed and _is_whole(name, cached, variant):
        return cached
    try:
        files = files_on_hub(spec.path, spec.revision)
    except HUB_ERRORS:
        if _is_whole(name, cached, variant):
            return cached
        raise
    own = {file.removeprefix(prefix): files[file] for file in files if file.startswith(prefix)}
    return {f"{name}/{file}": content for file, content in own.items() if _is_loaded(file)}


def _in_folder(name: str, folder: Path) -> Files:
    return {
        f"{name}/{path.name}": LocalFile(path) for path in files_directly_in(folder) if _is_loaded(path.name)
    }


def _is_whole(name: str, files: Files, variant: str | None) -> bool:
    """Whether these are all that the component is loaded from, and not half of a download."""
    weights = weights_of(files, name, variant)
    is_split = any("-of-" in file for file in files)
    has_vocabulary = f"{name}/merges.txt" in files or f"{name}/tokenizer.json" in files
    needs_no_more = config_of(name) in ("scheduler_config.json", "preprocessor_config.json")
    return bool(weights and not is_split) or has_vocabulary or (needs_no_more and bool(files))


_LOADED = ("diffusion_pytorch_model", "model", "pytorch_model")


def _is_loaded(file: str) -> bool:
    """Whether diffusers or transformers look for a file of this name in a component's folder."""
    is_weights = file.endswith((".safetensors", ".bin"))
    return "/" not in file and (file.split(".")[0].split("-")[0] in _LOADED if is_weights else is_small(file))


def is_small(file: str) -> bool:
    """Whether the name is that of a configuration or of a vocabulary."""
    return file.endswith((".json", ".txt"))


def needed_files(name: str, files: Files, variant: str | None) -> list[str]:
    """The names, in the composed checkpoint, of the files that this component is loaded from."""
    weights = weights_of(files, name, variant)
    return [file for file, content in files.items() if is_small(file) or content in weights]
