"""Where a checkpoint in a single file is, and its header, which is all that the driver reads of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, SafetensorsParsingError

from actors.checkpoints.component_files import HubFile, LocalFile, files_on_hub
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.single_files.safetensors_headers import Header, parse_header, read_header
from actors.checkpoints.single_files.single_file_kinds import Recognised, recognise
from actors.checkpoints.sources import digest_of, not_on_the_hub
from actors.storage.file_hashes import sha256_of
from actors.storage.stores import open_storage
from actors.storage.uris import S3_SCHEME, normalise
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec

ENDING = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".pkl", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """A checkpoint in a single file."""

    location: str
    """The absolute path, the s3:// URI, or the repository of the Hub with the file's name in it."""
    revision: str
    """The Hub's commit, or a digest of the file's content: on S3, of its ETag."""
    hashes: Mapping[str, str]
    """The SHA-256 of a local file, by its name; otherwise empty."""
    content: str
    """A text that two files share only if their content is equal."""
    header: Header
    recognised: Recognised


def is_single_file(checkpoint: str) -> bool:
    """Whether a checkpoint's name is that of a single file."""
    return checkpoint.endswith(ENDING) and not Path(checkpoint).expanduser().is_dir()


def refuse_pickle(key: str, checkpoint: str) -> None:
    """Raise SpecError for a file of which the ending says that it is a pickle, wherever it is."""
    if checkpoint.lower().endswith(PICKLES) and not Path(checkpoint).expanduser().is_dir():
        raise SpecError(
            f"{key}: {checkpoint} is a pickle, which can run code, and is not read. Name the same "
            f"checkpoint's {ENDING} file; most are published with one. Or load it where you trust it, with "
            "diffusers' `from_single_file`, and save it with `save_pretrained`"
        )


def refuse_single_file(key: str, path: str, class_name: str = "") -> None:
    """Raise SpecError for a file where a folder in diffusers' format is needed, wherever the file is.

    `class_name`: the class of diffusers that can convert the file, if there is one.
    """
    local = Path(path).expanduser()
    if local.is_dir() or not (local.is_file() or path.lower().endswith((ENDING, *PICKLES))):
        return
    convert = (
        f". To convert it, run diffusers' `{class_name}.from_single_file(FILE).save_pretrained(FOLDER)` "
        "where you trust the file"
    )
    raise SpecError(
        f"{key}: {path} is a file; name a folder that diffusers' `save_pretrained` wrote, or a repository "
        f"with such a folder{convert if class_name else ''}"
    )


def hub_parts(checkpoint: str) -> tuple[str, str]:
    """(repository, name in it) of `owner/name/file.safetensors`; the name is empty for a repository."""
    owner, name, *rest = checkpoint.split("/")
    return f"{owner}/{name}", "/".join(rest)


def repository_of(checkpoint: str) -> str:
    """The repository of the Hub that has the checkpoint, if it is on the Hub."""
    return hub_parts(checkpoint)[0] if is_single_file(checkpoint) and is_on_hub(checkpoint) else checkpoint


def is_on_hub(checkpoint: str) -> bool:
    """Whether the name of a single file has the form of one in a repository of the Hub."""
    parts = PurePosixPath(checkpoint).parts
    is_elsewhere = checkpoint.startswith(("/", ".", "~", S3_SCHEME))
    return not is_elsewhere and len(parts) > 2 and not Path(checkpoint).is_file()


def read_single_file(key: str, model: ModelSpec) -> SingleFile:
    """The single file that the model names; SpecError if it is missing, or if darkroom does not run it."""
    name = model.checkpoint
    try:
        if name.startswith(S3_SCHEME):
            return _on_s3(key, name)
        if is_on_hub(name):
            return _on_hub(key, name, model.revision)
        return _on_disk(key, name)
    except ValueError as error:
        raise SpecError(f"{key}: {name} cannot be used: {error}") from error


def _on_disk(key: str, name: str) -> SingleFile:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        hint = (
            "" if name.startswith(("/", ".", "~")) else "; a file on the Hub is owner/name/file.safetensors"
        )
        raise SpecError(f"{key}: the file {path} does not exist{hint}")
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
        recognised = recognise(header)
        digest = sha256_of(str(path))
    except OSError as error:
        raise SpecError(
            f"{key}: {path} cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    hashes = {path.name: digest}
    return SingleFile(
        location=str(path),
        revision=digest_of(hashes),
        hashes=hashes,
        content=digest,
        header=header,
        recognised=recognised,
    )


def _on_s3(key: str, name: str) -> SingleFile:
    try:
        uri = normalise(name)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error
    storage = open_storage(uri)
    stored = storage.stat(uri)
    if stored is None:
        raise SpecError(f"{key}: there is no object {uri}")
    with storage.open(uri) as file:
        header = read_header(file, stored.size_bytes)
    content = digest_of({PurePosixPath(uri).name: stored.etag})
    return _elsewhere(uri, content, content, header)


def _on_hub(key: str, checkpoint: str, revision: str | None) -> SingleFile:
    repository, name = hub_parts(checkpoint)
    cached = cached_file(repository, name, revision)
    try:
        file = files_on_hub(repository, revision).get(name)
    except (*HUB_ERRORS, HFValidationError) as error:
        if cached is None:
            raise not_on_the_hub(key, repository, revision, error) from error
        # The Hub's cache names the folder after the commit.
        commit = cached.parents[name.count("/")].name
        return _elsewhere(checkpoint, commit, LocalFile(cached).sha256(), local_header(cached))
    if not isinstance(file, HubFile):
        raise SpecError(f"{key}: the repository {repository} of the Hub has no file {name}")
    if cached := cached_file(repository, name, file.commit):
        return _elsewhere(checkpoint, file.commit, file.hash, local_header(cached))
    try:
        header = remote_header(repository, file)
    except HUB_ERRORS as error:
        raise not_on_the_hub(key, repository, revision, error) from error
    return _elsewhere(checkpoint, file.commit, file.hash, header)


def _elsewhere(location: str, revision: str, content: str, header: Header) -> SingleFile:
    """A file that is not on this machine's own disk, whose revision tells what it contains."""
    return SingleFile(
        location=location,
        revision=revision,
        hashes={},
        content=content,
        header=header,
        recognised=recognise(header),
    )


def cached_file(repository: str, name: str, revision: str | None) -> Path | None:
    """A repository's file in the cache of this machine; None if it was not downloaded."""
    try:
        path = try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def local_header(path: Path) -> Header:
    """The header of a file on this machine; ValueError if it is not one of safetensors."""
    with path.open("rb") as file:
        return read_header(file, path.stat().st_size)


@lru_cache(maxsize=256)
def remote_header(repository: str, file: HubFile) -> Header:
    """The header of a file on the Hub, of which no more than that is downloaded."""
    try:
        parsed = HfApi().parse_safetensors_file_metadata(repository, file.name, revision=file.commit)
    except SafetensorsParsingError as error:
        raise ValueError(f"its header is not that of a safetensors file ({error})") from error
    tensors = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in parsed.tensors.items()
    }
    num_data_bytes = max((tensor.data_offsets[1] for tensor in parsed.tensors.values()), default=0)
    if num_data_bytes > file.size_bytes:
        raise ValueError(f"its header describes {num_data_bytes:,} bytes, but it has {file.size_bytes:,}")
    return parse_header(json.dumps({"__metadata__": parsed.metadata, **tensors}).encode(), num_data_bytes)
