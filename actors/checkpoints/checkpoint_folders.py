"""Where a checkpoint is: in a folder, on the Hub, or in the cache of demo checkpoints."""

from collections.abc import Iterable
from pathlib import Path

from models.demo_adapters import demo_adapter
from models.demo_cache import KINDS, SCHEME, build_missing, demo_checkpoint
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec


def local_folder(model: ModelSpec) -> Path | None:
    """The checkpoint's folder on this machine; None for a repository on the Hub.

    A `demo:KIND` checkpoint is built here if this machine has none yet.
    """
    if _is_demo(model):
        return demo_checkpoint(model.checkpoint.removeprefix(SCHEME))
    try:
        folder = Path(model.checkpoint).expanduser().absolute()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError) as error:  # a name that is too long, the home folder of an unknown user
        raise SpecError(f"{model.checkpoint[:100]} cannot be a folder: {error.args[-1]}") from error


def is_folder_name(checkpoint: str) -> bool:
    """Whether the name of a checkpoint can only be that of a folder, not of a repository on the Hub."""
    return checkpoint.startswith(("/", ".", "~"))


def _is_demo(model: ModelSpec) -> bool:
    return model.checkpoint.startswith(SCHEME)


def adapter_path(path: str) -> Path:
    """The file or folder on this machine that the path of an adapter names; it need not exist.

    `demo:KIND` is one that comes with darkroom; SpecError for an unknown kind.
    """
    return demo_adapter(path) or Path(path).expanduser().absolute()


def adapter_for_workers(path: str, present: Path) -> str:
    """The path of an adapter as workers find it, whatever their working folder.

    `present`: where it is on this machine. Each machine has its own of those that come with darkroom.
    """
    return path if path.startswith(SCHEME) else str(present)


def build_demo_checkpoints(models: Iterable[ModelSpec]) -> None:
    """Build all demo checkpoints that the models name and this machine lacks.

    Unknown kinds are passed over here: `read_card` refuses them.
    """
    kinds = [model.checkpoint.removeprefix(SCHEME) for model in models if _is_demo(model)]
    build_missing(kind for kind in dict.fromkeys(kinds) if kind in KINDS)


def location_for_workers(model: ModelSpec) -> str:
    """The checkpoint as workers find it, whatever their working folder. Each machine builds its own demos."""
    folder = None if _is_demo(model) else local_folder(model)
    return str(folder or model.checkpoint)
