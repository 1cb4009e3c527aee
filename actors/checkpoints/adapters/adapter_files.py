"""The files of adapters, such as LoRAs: found by the driver, and brought to the machine of a worker.

They are small, and of safetensors only. A folder or a repository may stand for the only one that it has.
"""

import hashlib
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from actors.checkpoints.checkpoint_folders import adapter_for_workers, adapter_path, is_folder_name
from actors.checkpoints.component_files import HubFile, LocalFile, files_on_hub
from actors.checkpoints.hub import HUB_ERRORS, ask_hub
from actors.checkpoints.single_files.safetensors_headers import Header, read_header, refuse_whole_numbers
from actors.checkpoints.single_files.single_file import (
    ENDING,
    PICKLES,
    cached_file,
    hub_parts,
    local_header,
    remote_header,
)
from actors.checkpoints.sources import not_on_the_hub
from actors.storage.file_hashes import sha256_of
from actors.storage.objects import Storage, StoredObject
from actors.storage.stores import Stores
from actors.storage.uris import S3_SCHEME, join, normalise
from models.caches import cache_folder
from models.demo_adapters import demo_adapter
from schemas.errors import SpecError, StorageError
from schemas.spec.adapter_spec import AdapterSpec
from schemas.systems.model_card import AdapterFile
from schemas.wording.printable import listed

READ_AT_ONCE = 16 << 20
"""The bytes of an object on S3 that are read at a time."""
_FILE_SCHEME = "file://"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapter:
    """An adapter's file, and what its header says."""

    file: AdapterFile
    location: str
    """The file as messages name it."""
    header: Header


def find_adapter(key: str, name: str, spec: AdapterSpec, stores: Stores) -> FoundAdapter:
    """The file that an adapter's entry in the spec names; SpecError says what is wrong with it.

    `key`: the entry, such as `models.xl.loras.chalk`. Of a file on the Hub only the header is read. Other
    files are read for their hash too, which each machine does once.
    """
    if spec.weight_name is not None:
        _refuse_other_kinds(key, spec.weight_name)
    try:
        adapter = _read(key, name, spec, stores)
        refuse_whole_numbers(adapter.header.tensors)
        return adapter
    except ValueError as error:
        raise SpecError(f"{key}: {spec.path} cannot be used: {error}") from error
    except OSError as error:
        raise SpecError(
            f"{key}: {spec.path} cannot be read ({error.strerror or error}); check its permissions"
        ) from error


def _read(key: str, name: str, spec: AdapterSpec, stores: Stores) -> FoundAdapter:
    if spec.path.startswith(S3_SCHEME):
        return _on_s3(key, name, spec, stores)
    path = Path(_normalised(key, spec.path))
    if path.exists() or is_folder_name(spec.path) or spec.path.startswith(_FILE_SCHEME):
        return _on_disk(key, name, spec, path)
    if len(PurePosixPath(spec.path).parts) < 2:
        raise SpecError(f"{key}: the file {path} does not exist; a repository of the Hub is owner/name")
    return _on_hub(key, name, spec)


def _normalised(key: str, path: str) -> str:
    try:
        return str(demo_adapter(path) or normalise(path))
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


def _refuse_other_kinds(key: str, name: str) -> None:
    """Raise SpecError for a file whose name does not end as those of safetensors do."""
    if name.lower().endswith(PICKLES):
        raise SpecError(
            f"{key}: {name} is a pickle, which can run code, and is not read. Name the adapter's {ENDING} "
            "file; most are published with one. Or load it where you trust it, and save it with safetensors"
        )
    if not name.endswith(ENDING):
        raise SpecError(f"{key}: {name} does not end in {ENDING}; adapters are read from such files only")


def _refuse_keys(key: str, spec: AdapterSpec, *keys: str) -> None:
    """Raise SpecError if the entry has one of these keys, which mean nothing for what its path is."""
    for each in keys:
        if getattr(spec, each) is not None:
            raise SpecError(f"{key}.{each}: {spec.path} is not a folder or a repository; leave `{each}` out")


def _only(key: str, place: str, names: Iterable[str]) -> str:
    """The one name that is that of a file of safetensors; SpecError if there is none, or several."""
    names = sorted(names)
    safe = [name for name in names if name.endswith(ENDING)]
    if len(safe) == 1:
        return safe[0]
    if safe:
        raise SpecError(
            f"{key}: {place} has several {ENDING} files; name one with `weight_name`: {listed(safe)}"
        )
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    beside = f"; it has {listed(pickles)}, but pickles can run code, and are not read" if pickles else ""
    raise SpecError(f"{key}: {place} has no {ENDING} file{beside}")


def _on_disk(key: str, name: str, spec: AdapterSpec, path: Path) -> FoundAdapter:
    if path.is_dir():
        path = path / (spec.subfolder or "")
        if spec.weight_name is None and path.is_dir():
            path /= _only(key, str(path), (each.name for each in path.iterdir() if each.is_file()))
        else:
            path /= spec.weight_name or ""
    else:
        _refuse_keys(key, spec, "weight_name", "subfolder")
    _refuse_other_kinds(key, str(path))
    if not path.is_file():
        raise SpecError(f"{key}: the file {path} does not exist")
    header, file = local_header(path), LocalFile(path)
    return FoundAdapter(
        file=AdapterFile(
            name=name,
            path=adapter_for_workers(spec.path, path),
            sha256=file.sha256(),
            size_bytes=file.size_bytes,
        ),
        location=str(path),
        header=header,
    )


def _on_s3(key: str, name: str, spec: AdapterSpec, stores: Stores) -> FoundAdapter:
    uri = _normalised(key, spec.path)
    storage = stores.of(uri)
    if spec.weight_name is not None or not uri.lower().endswith((ENDING, *PICKLES)):
        folder = join(uri, spec.subfolder) if spec.subfolder else uri
        uri = join(folder, spec.weight_name or _only(key, folder, _names_in(storage, folder)))
    else:
        _refuse_keys(key, spec, "subfolder")
    _refuse_other_kinds(key, uri)
    stored = storage.stat(uri)
    if stored is None:
        raise SpecError(f"{key}: there is no object {uri}")
    with storage.open(uri) as source:
        header = read_header(source, stored.size_bytes)
    file = AdapterFile(
        name=name, path=uri, sha256=_hash_of_object(stored, stores), size_bytes=stored.size_bytes
    )
    return FoundAdapter(file=file, location=uri, header=header)


def _names_in(storage: Storage, folder: str) -> list[str]:
    """The names of the objects directly below a folder on S3."""
    names = (each.uri.removeprefix(f"{folder}/") for each in storage.list_sizes(folder))
    return [name for name in names if "/" not in name]


def _hash_of_object(stored: StoredObject, stores: Stores) -> str:
    """The SHA-256 of an object on S3. A machine reads it once for that, as long as its ETag is the same."""
    entry_name = hashlib.sha256(f"{stored.uri} {stored.size_bytes} {stored.etag}".encode()).hexdigest()[:32]
    entry = cache_folder() / "hashes" / f"{entry_name}.s3"
    try:
        kept = entry.read_text()
        if len(kept) == 64:
            return kept
    except (OSError, UnicodeDecodeError):
        pass
    digest = _copied(stored.uri, stores, lambda block: None)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(uuid.uuid4().hex)
        temporary.write_text(digest)
        temporary.replace(entry)
    except OSError:
        pass  # A cache that cannot be written only costs time.
    return digest


def _copied(uri: str, stores: Stores, write: Callable[[bytes], object]) -> str:
    """The SHA-256 of an object, each block of which is handed to `write`."""
    digest = hashlib.sha256()
    with stores.of(uri).open(uri) as source:
        while block := source.read(READ_AT_ONCE):
            digest.update(block)
            write(block)
    return digest.hexdigest()


def _on_hub(key: str, name: str, spec: AdapterSpec) -> FoundAdapter:
    repository, file_name = hub_parts(spec.path)
    if file_name:
        _refuse_keys(key, spec, "weight_name", "subfolder")
        _refuse_other_kinds(key, file_name)
    elif spec.weight_name is not None:
        file_name = _below(spec.subfolder, spec.weight_name)
    try:
        files = files_on_hub(repository, spec.revision)
    except (*HUB_ERRORS, HFValidationError) as error:
        cached = cached_file(repository, file_name, spec.revision) if file_name else None
        if cached is None:
            raise not_on_the_hub(key, repository, spec.revision, error) from error
        return _of_hub(key, name, repository, file_name, cached)
    if not file_name:
        folder = _below(spec.subfolder, "")
        below = (each.removeprefix(folder) for each in files if each.startswith(folder))
        file_name = folder + _only(
            key, f"{repository} of the Hub", (each for each in below if "/" not in each)
        )
    file = files.get(file_name)
    if not isinstance(file, HubFile):
        raise SpecError(f"{key}: the repository {repository} of the Hub has no file {file_name}")
    cached = cached_file(repository, file_name, file.commit)
    if cached is None and len(file.hash) != 64:  # A small file that is in Git itself has Git's own hash.
        cached = Path(hf_hub_download(repository, file_name, revision=file.commit))
    return _of_hub(key, name, repository, file_name, cached or file)


def _of_hub(key: str, name: str, repository: str, file_name: str, content: Path | HubFile) -> FoundAdapter:
    """A file on the Hub, which is in this machine's cache, or of which the Hub tells size and hash."""
    subfolder, _, weight_name = file_name.rpartition("/")
    # The Hub's cache names the folder after the commit.
    commit = content.parents[file_name.count("/")].name if isinstance(content, Path) else content.commit
    file = LocalFile(content) if isinstance(content, Path) else content
    header = local_header(content) if isinstance(content, Path) else _remote_header(key, repository, content)
    return FoundAdapter(
        file=AdapterFile(
            name=name,
            path=repository,
            weight_name=weight_name,
            subfolder=subfolder or None,
            revision=commit,
            sha256=file.sha256(),
            size_bytes=file.size_bytes,
        ),
        location=f"{repository}/{file_name}",
        header=header,
    )


def _remote_header(key: str, repository: str, file: HubFile) -> Header:
    try:
        return remote_header(repository, file)
    except HUB_ERRORS as error:
        raise not_on_the_hub(key, repository, file.commit, error) from error


def _below(folder: str | None, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def on_this_machine(file: AdapterFile, deadline_s: float, kind: str = "LoRA") -> Path:
    """The adapter's file on this machine, with the content that the driver saw; it is downloaded if need be.

    `kind`: what messages call it. SpecError if it is missing or has another content, StorageError if the
    store or the Hub is in trouble for longer than the deadline.
    """
    who = f"the {kind} `{file.name}`"
    if file.path.startswith(S3_SCHEME):
        return _downloaded(who, file, deadline_s)
    path = _from_hub(who, file, deadline_s) if file.revision else adapter_path(file.path)
    if not path.is_file():
        raise SpecError(
            f"{who}: the file {path} does not exist on {socket.gethostname()}; it must be "
            "on every machine of the cluster, on S3 or on the Hub"
        )
    if LocalFile(path).sha256() != file.sha256:
        raise SpecError(_changed(who, f"{path} on {socket.gethostname()}"))
    return path


def _changed(who: str, place: str) -> str:
    return (
        f"{who}: {place} does not have the content that the driver saw, so images would "
        "differ; put the file back, or copy the driver's file to every machine"
    )


def _from_hub(who: str, file: AdapterFile, deadline_s: float) -> Path:
    name = _below(file.subfolder, file.weight_name or "")
    try:
        return Path(
            ask_hub(lambda: hf_hub_download(file.path, name, revision=file.revision), file.path, deadline_s)
        )
    except HUB_ERRORS as error:
        raise SpecError(f"{who}: {file.path}/{name} cannot be downloaded: {error}") from error


def _downloaded(who: str, file: AdapterFile, deadline_s: float) -> Path:
    """The file in this machine's cache, where its content gives it its name; it is copied there at first."""
    path = cache_folder() / "adapters" / f"{file.sha256}{ENDING}"
    if path.is_file() and sha256_of(str(path)) == file.sha256:
        return path
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as copy:
            digest = _copied(file.path, Stores(deadline_s), copy.write)
        if digest != file.sha256:
            raise SpecError(_changed(who, file.path))
        os.replace(unfinished, path)  # Several workers of a machine may do this at once.
    except FileNotFoundError as error:
        raise SpecError(f"{who}: there is no object {file.path}") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); check the disk's space") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return path
