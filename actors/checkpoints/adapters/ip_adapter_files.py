"""The IP-Adapters of a model, found and compared with its UNet and their image encoders."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

from actors.checkpoints.adapters.adapter_files import find_adapter
from actors.checkpoints.adapters.checkpoint_layers import Layers, layers_of
from actors.checkpoints.adapters.ip_adapter_forms import IpAdapterForm, form_of, misfit
from actors.checkpoints.adapters.weights_headers import check_headers, file_name
from actors.checkpoints.checkpoint_folders import is_folder_name
from actors.checkpoints.component_files import SAFE, weights_of
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.named_components import files_of_component, read_component
from actors.checkpoints.sources import not_on_the_hub
from actors.storage.stores import Stores
from actors.storage.uris import S3_SCHEME
from schemas.errors import SpecError
from schemas.job import component_spec, pinned
from schemas.spec.adapter_spec import IpAdapterSpec
from schemas.spec.component_spec import ComponentSpec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import AdapterFile, ComponentCard, IpAdapterCard, ModelCard
from schemas.systems.system_table import SYSTEMS

IMAGE_ENCODER = "image_encoder"
FILES_AT_ONCE = 16
"""IP-Adapters that are looked at at the same time."""
_CLASS = "CLIPVisionModelWithProjection"
_WIDTHS = {"projection_dim": 512, "hidden_size": 768}
"""The widths of embeddings, with the defaults of a CLIPVisionConfig (transformers 5.23)."""


def find_ip_adapters(
    name: str, model: ModelSpec, card: ModelCard, stores: Stores
) -> dict[str, IpAdapterCard]:
    """The cards of a model's IP-Adapters by name; SpecError for the first that the model cannot use.

    `name`: the model's name in the spec. Only configurations and headers are read, and what a hash needs.
    """
    if not model.ip_adapters:
        return {}
    key = f"models.{name}.ip_adapters"
    if not any("ip_adapter" in system.defaults for system in SYSTEMS if system.family == card.family):
        raise SpecError(
            f"{key}: diffusers has no pipeline with IP-Adapters for a checkpoint of {card.family}"
        )
    layers, _ = layers_of(f"models.{name}.checkpoint", pinned(model, card))

    def find(entry: tuple[str, IpAdapterSpec]) -> IpAdapterCard:
        adapter, spec = entry
        return _find(f"{key}.{adapter}", adapter, spec, model.checkpoint, layers.get("unet"), stores)

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        return dict(zip(model.ip_adapters, threads.map(find, model.ip_adapters.items()), strict=True))


def _find(
    key: str, name: str, spec: IpAdapterSpec, checkpoint: str, unet: Layers | None, stores: Stores
) -> IpAdapterCard:
    adapter = find_adapter(key, name, spec, stores)
    try:
        form = form_of({tensor: each.shape for tensor, each in adapter.header.tensors.items()})
        if problem := misfit(form, unet):
            raise ValueError(problem)
    except ValueError as error:
        raise SpecError(f"{key}: {adapter.location} cannot be used with {checkpoint}: {error}") from error
    encoder = read_component(f"{key}.{IMAGE_ENCODER}", IMAGE_ENCODER, _encoder_spec(key, spec, adapter.file))
    _check_encoder(encoder.key, encoder.config, encoder.source, form)
    return IpAdapterCard(file=adapter.file, image_encoder=encoder.source)


def _encoder_spec(key: str, spec: IpAdapterSpec, file: AdapterFile) -> ComponentSpec:
    """Where the image encoder is: beside the adapter's file, if the spec does not say otherwise.

    A name of several folders begins at the adapter's folder or repository, as in diffusers 0.42.1.
    """
    if isinstance(spec.image_encoder, ComponentSpec):
        return spec.image_encoder
    name = spec.image_encoder
    if is_folder_name(name):
        return ComponentSpec(path=name, subfolder="")
    if file.path.startswith(S3_SCHEME):
        raise SpecError(
            f"{key}.{IMAGE_ENCODER}: an image encoder is not read from S3; name its folder, or {{path: ...}} "
            "for one on the Hub"
        )
    if file.revision:
        subfolder = name if "/" in name or not file.subfolder else f"{file.subfolder}/{name}"
        return ComponentSpec(path=file.path, revision=file.revision, subfolder=subfolder)
    beside = Path(file.path).parent
    root = Path(spec.path).expanduser().absolute()
    folder = (root if "/" in name and root.is_dir() else beside) / name
    if not folder.is_dir():
        raise SpecError(
            f"{key}.{IMAGE_ENCODER}: the folder {folder} does not exist, and an IP-Adapter needs one with "
            "the image encoder that it was trained with; download it there, or name the folder that has it"
        )
    return ComponentSpec(path=str(folder), subfolder="")


def _check_encoder(key: str, config: Mapping[str, Any], source: ComponentCard, form: IpAdapterForm) -> None:
    """Raise SpecError if the image encoder is of another class, does not fit, or has no whole weights."""
    kind = (config.get("architectures") or [None])[0]
    if kind != _CLASS:
        raise SpecError(f"{key}: {source.path} is a {kind!s:.80}, not a {_CLASS}")
    width = config.get(form.embedding_key, _WIDTHS[form.embedding_key])
    if width != form.embedding_width:
        raise SpecError(
            f"{key}: {_place(source)} does not fit the adapter: its {form.embedding_key} is {width!r:.60}, "
            f"and the adapter reads {form.embedding_width}; name the image encoder that it was trained with"
        )
    spec = component_spec(source)
    try:
        files = files_of_component(IMAGE_ENCODER, spec, None)
    except (*HUB_ERRORS, HFValidationError) as error:
        raise not_on_the_hub(key, source.path, source.revision, error) from error
    weights = [
        each for each in weights_of(files, IMAGE_ENCODER, None) if not file_name(each).endswith(".bin")
    ]
    if not weights:
        raise SpecError(
            f"{key}: {_place(source)} has no model{SAFE}. Weights of other kinds are not read, because they "
            "can run code"
        )
    check_headers(key, source.path, source.revision, weights)


def _place(source: ComponentCard) -> str:
    return f"{source.path}/{source.subfolder}".rstrip("/")
