"""Components in a spec that are named by themselves, such as another VAE."""

from pydantic import field_validator

from schemas.spec.path_or_mapping import PathOrMapping
from schemas.spec.plain_text import Name, Plain
from schemas.wording.printable import shortened


class ComponentSpec(PathOrMapping):
    """Where a component is that replaces the checkpoint's own. A text alone is its path."""

    path: Name
    """A folder or a repository of the Hugging Face Hub: that of the component, or of a whole checkpoint."""
    revision: Plain | None = None
    """A branch, tag or commit of the Hub repository."""
    subfolder: Plain | None = None
    """The component's folder in it; "" for the whole. Default: the folder of the component's name, or else
    the whole."""

    @field_validator("path")
    @classmethod
    def _no_address(cls, path: str) -> str:
        if "://" in path:
            raise ValueError("a component is a folder or a Hub repository such as owner/name, not an address")
        return path

    @field_validator("subfolder")
    @classmethod
    def _below(cls, subfolder: str | None) -> str | None:
        if subfolder and {"", ".", ".."} & {*subfolder.split("/")}:
            raise ValueError(f"{shortened(subfolder)!r} is not a folder below the component's path")
        return subfolder
