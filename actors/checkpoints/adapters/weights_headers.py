"""The headers of a folder's weights, read before anything is loaded."""

from collections.abc import Iterable

from actors.checkpoints.component_files import CheckpointFile, HubFile, LocalFile
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.single_files.safetensors_headers import refuse_whole_numbers
from actors.checkpoints.single_files.single_file import local_header, remote_header
from actors.checkpoints.sources import not_on_the_hub
from schemas.errors import SpecError


def check_headers(key: str, path: str, revision: str | None, weights: Iterable[CheckpointFile]) -> None:
    """Raise SpecError for the first of these files that is damaged, or quantised.

    `key`: the entry of the spec. `path`: the folder or the repository of the Hub that has the files.
    """
    for file in weights:
        try:
            if isinstance(file, HubFile):
                refuse_whole_numbers(remote_header(path, file).tensors)
            elif isinstance(file, LocalFile):
                refuse_whole_numbers(local_header(file.path).tensors)
        except ValueError as error:
            raise SpecError(f"{key}: {file_name(file)} of {path} cannot be used: {error}") from error
        except HUB_ERRORS as error:
            raise not_on_the_hub(key, path, revision, error) from error


def file_name(file: CheckpointFile) -> str:
    """The file's name, as messages have it."""
    return file.path.name if isinstance(file, LocalFile) else str(getattr(file, "name", "a file"))
