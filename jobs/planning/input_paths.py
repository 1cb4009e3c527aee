"""The input's files, from the folders and patterns that name them."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from actors.storage.objects import Storage, StoredObject
from actors.storage.stores import Stores
from actors.storage.uris import S3_SCHEME, normalise
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec

_WILDCARDS = "*?["


def find_files(spec: JobSpec, stores: Stores) -> list[StoredObject]:
    """The input's Parquet files in the order of their URIs, each once."""
    found: dict[str, StoredObject] = {}
    for path in paths_of(spec):
        files = _expand(path, stores.of(path))
        if not files:
            raise SpecError(f"input.path: no Parquet file is there: {path} (a file, a folder or a pattern)")
        for file in files:
            _check_name(file.uri)
            found[file.uri] = file
    return [found[uri] for uri in sorted(found)]


def _check_name(uri: str) -> None:
    """Workers are told of a file by its name, and records tell it in JSON."""
    try:
        uri.encode()
        normalised("input.path", uri)
    except UnicodeEncodeError as error:
        raise SpecError(f"input.path: {uri!r} has a name that is no UTF-8; rename it") from error


def paths_of(spec: JobSpec) -> list[str]:
    for folder in spec.input.pictures:
        normalised("input.pictures", folder)
    paths = [spec.input.path] if isinstance(spec.input.path, str) else spec.input.path
    return [normalised("input.path", path) for path in paths]


def normalised(key: str, path: str) -> str:
    try:
        return normalise(path)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


def _expand(path: str, storage: Storage) -> Sequence[StoredObject]:
    is_bucket = path.startswith(S3_SCHEME) and "/" not in path.removeprefix(S3_SCHEME)
    stored = None if is_bucket else storage.stat(path)
    if stored is not None:
        return [stored]
    first = min((path.index(sign) for sign in _WILDCARDS if sign in path), default=None)
    folder = path if first is None else path[:first].rpartition("/")[0]
    return [file for file in storage.list(folder) if takes(path, file.uri)]


def takes(path: str, uri: str) -> bool:
    """Whether a folder or a pattern stands for this file."""
    if any(sign in path for sign in _WILDCARDS):
        return _matches(uri.split("/"), path.split("/"))
    names = uri.removeprefix(f"{path}/")
    return uri != names and names.endswith(".parquet") and not any(map(_is_hidden, names.split("/")))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """As in a shell: `*` stays within one name, `**` stands for any number of folders."""
    if not patterns or (not names and patterns[0] != "**"):
        return not names and not patterns
    if patterns[0] == "**":
        deeper = bool(names) and not _is_hidden(names[0]) and _matches(names[1:], patterns)
        return deeper or _matches(names, patterns[1:])
    hidden = _is_hidden(names[0]) and names[0][0] != patterns[0][:1]
    return not hidden and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _is_hidden(name: str) -> bool:
    """Names that begin with _ or . are other programs' bookkeeping, as in Spark and Hive."""
    return name.startswith(("_", "."))
