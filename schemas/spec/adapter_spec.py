"""Adapters in a spec: weights that change what a checkpoint makes, such as LoRAs and ControlNets."""

from pydantic import field_validator

from schemas.spec.component_spec import ComponentSpec
from schemas.spec.path_or_mapping import PathOrMapping
from schemas.spec.plain_text import Name, Plain
from schemas.wording.printable import shortened


class AdapterSpec(PathOrMapping):
    """One adapter's file of safetensors. A text alone is its path."""

    path: Name
    """The file, local or s3://; or a local folder or a repository of the Hugging Face Hub that has it. Some
    come with darkroom: demo:KIND."""
    weight_name: Plain | None = None
    """The file's name in the folder or the repository. Default: its only file of safetensors."""
    subfolder: Plain | None = None
    """The folder of the file in the folder or the repository."""
    revision: Plain | None = None
    """A branch, tag or commit of the Hub repository."""

    @field_validator("path")
    @classmethod
    def _no_address(cls, path: str) -> str:
        if "://" in path and not path.startswith(("s3://", "file://")):
            # The message does not quote the address, because addresses of repositories often contain a token.
            raise ValueError(
                "an adapter is a file, a folder, an s3:// object or a Hub repository such as owner/name, not "
                "an address"
            )
        return path

    @field_validator("weight_name", "subfolder")
    @classmethod
    def _below_the_path(cls, name: str | None) -> str | None:
        return _checked_below(name)


class IpAdapterSpec(AdapterSpec):
    """One IP-Adapter's file of safetensors, and its image encoder. A text alone is the file's path."""

    image_encoder: Plain | ComponentSpec = "image_encoder"
    """The folder of the image encoder: a name is one beside the file, and a path such as
    models/image_encoder begins at the adapter's folder or repository. An encoder elsewhere is
    {path: FOLDER_OR_REPOSITORY}."""

    @field_validator("image_encoder")
    @classmethod
    def _a_folder(cls, image_encoder: str | ComponentSpec) -> str | ComponentSpec:
        if isinstance(image_encoder, str) and "://" in image_encoder:
            raise ValueError("an image encoder is a folder or a repository of the Hub, not an address")
        if isinstance(image_encoder, str) and not image_encoder.startswith(("/", "./", "~/")):
            _checked_below(image_encoder)
        return image_encoder


class ControlNetSpec(PathOrMapping):
    """One ControlNet in diffusers' format. A text alone is its path."""

    path: Name
    """A folder that `save_pretrained` wrote, a repository of the Hugging Face Hub, or demo:KIND."""
    revision: Plain | None = None
    """A branch, tag or commit of the Hub repository."""
    subfolder: Plain | None = None
    """Its folder in the folder or the repository."""
    variant: Plain | None = None
    """A variant of the weight files, such as fp16."""

    @field_validator("path")
    @classmethod
    def _no_address(cls, path: str) -> str:
        if "://" in path:
            # The message does not quote the address, because addresses of repositories often contain a token.
            raise ValueError(
                "a ControlNet is a folder or a Hub repository such as owner/name, not an address"
            )
        return path

    @field_validator("subfolder")
    @classmethod
    def _below_the_path(cls, name: str | None) -> str | None:
        return _checked_below(name)


def _checked_below(name: str | None) -> str | None:
    """The name; ValueError if it is not that of something below a path."""
    if name is not None and (name.startswith("/") or {"", ".", ".."} & {*name.split("/")}):
        raise ValueError(f"`{shortened(name)}` is not the name of a file or folder below the path")
    return name
