"""Where the files of a checkpoint or of a component are read from: a folder or a repository of the Hub.

Messages begin with the key of the spec that names it, such as `models.sd.checkpoint`.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RevisionNotFoundError

from actors.checkpoints.hub import HUB_ERRORS, first_line, trouble_of
from actors.storage.file_hashes import sha256_of
from actors.storage.local_disk import LocalStorage
from schemas.errors import DarkroomError, SpecError

HASHES_AT_ONCE = 4
"""A checkpoint's files that are hashed at the same time."""

MAX_CONFIG_BYTES = 16 << 20
"""The largest configuration file that is read. Published ones have a few kilobytes."""

ReadJson = Callable[[str], dict[str, Any]]
"""A function that returns the content of one of a checkpoint's JSON files, by its name."""


def folder_reader(key: str, folder: Path) -> ReadJson:
    """A function that reads the JSON files of a folder, and raises SpecError where it cannot."""
    storage = LocalStorage(temp_dir="")

    def read_json(file: str) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read(str(folder / file), MAX_CONFIG_BYTES)))
        except (DarkroomError, OSError, RecursionError, TypeError, ValueError) as error:
            raise SpecError(
                f"{key}: {folder} has no readable {file}; "
                "it must be a diffusers folder as `save_pretrained` writes it"
            ) from error

    return read_json


def hub_reader(key: str, repository: str, revision: str | None, first: str) -> tuple[str, ReadJson]:
    """(commit, function that reads a JSON file) of a Hub repository, whose file `first` is read now."""

    def fetch(file: str) -> Path:
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except RemoteEntryNotFoundError as error:
            raise SpecError(
                f"{key}: {repository} is a repository of the Hub without {file}, so "
                "it is no checkpoint in diffusers' format"
            ) from error
        except (*HUB_ERRORS, HFValidationError) as error:
            raise not_on_the_hub(key, repository, revision, error) from error

    def read_json(file: str) -> dict[str, Any]:
        return dict(json.loads(fetch(file).read_bytes()))

    # A file in the Hub's cache is in snapshots/<commit>/: the commit is the revision.
    return fetch(first).parents[first.count("/")].name, read_json


def not_on_the_hub(key: str, repository: str, revision: str | None, error: Exception) -> SpecError:
    """The error for a repository that could not be read."""
    if isinstance(error, RevisionNotFoundError):
        return SpecError(
            f"{key.replace('.checkpoint', '.revision')}: {repository} has no branch, tag or commit "
            f"{revision} on the Hub"
        )
    if trouble := trouble_of(error):
        return SpecError(
            f"{key}: {repository} is not a folder here, and the Hub does "
            f"not answer: {trouble}. Check the network and HF_ENDPOINT, and try again"
        )
    return SpecError(
        f"{key}: {repository} is neither a folder here nor a Hub repository "
        f"that can be reached ({first_line(error)})"
    )


def check_files(key: str, folder: Path) -> None:
    """Raise SpecError if anything in it is not a file or folder: diffusers would wait for a pipe for ever."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            continue
        kind = (
            "neither a file nor a folder"
            if path.exists()
            else "a broken link; copy folders of the Hub's cache with `cp --dereference`"
        )
        raise SpecError(f"{key}: {path} is {kind}")


def pipeline_files(folder: Path, replaced: Collection[str]) -> list[Path]:
    """The files that the folder's pipeline can be loaded from, without those of `replaced` components.

    Other files do not count: a README, or the checkpoints that a trainer saved on its way.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    components = [part for part, entry in index.items() if isinstance(entry, list) and part not in replaced]
    files = [path for part in components for path in (folder / part).rglob("*") if path.is_file()]
    return [folder / "model_index.json", *files]


def files_directly_in(folder: Path) -> list[Path]:
    """The files of a component's folder that can count: not those below it, nor hidden ones."""
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def hashes_of(key: str, folder: Path, paths: Collection[Path]) -> dict[str, str]:
    """The SHA-256 of each of these files by its name below the folder."""
    # A name need not be UTF-8, and the job's record is.
    names = [path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode() for path in paths]
    try:
        with ThreadPoolExecutor(HASHES_AT_ONCE) as threads:
            hashes = [*threads.map(sha256_of, map(str, paths))]
    except OSError as error:
        raise SpecError(
            f"{key}: {error.filename} cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    return dict(sorted(zip(names, hashes, strict=True)))


def digest_of(hashes: Mapping[str, str]) -> str:
    """The revision of a folder with these files: a hash of their names and contents."""
    lines = "".join(f"{name} {digest}\n" for name, digest in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
