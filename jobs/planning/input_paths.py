"""The files of the input, found by the paths, folders and patterns in input.path."""

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
    files_by_uri: dict[str, StoredObject] = {}
    for path in paths_of(spec):
        files = _expand(path, stores.of(path))
        if not files:
            raise SpecError(f"input.path: there is no Parquet file at {path} (a file, a folder or a pattern)")
        for file in files:
            _check_name(file.uri)
            files_by_uri[file.uri] = file
    return [files_by_uri[uri] for uri in sorted(files_by_uri)]


def _check_name(uri: str) -> None:
    """Raise SpecError for a file name that is not valid UTF-8: workers and the job's record need the name."""
    try:
        uri.encode()
        normalised("input.path", uri)
    except UnicodeEncodeError as error:
        raise SpecError(f"input.path: {uri!r} has a name that is not valid UTF-8; rename it") from error


def paths_of(spec: JobSpec) -> list[str]:
    """The normalised paths of input.path; SpecError where one, or one of input.pictures, is not valid."""
    for folder in spec.input.pictures:
        normalised("input.pictures", folder)
    paths = [spec.input.path] if isinstance(spec.input.path, str) else spec.input.path
    return [normalised("input.path", path) for path in paths]


def normalised(key: str, path: str) -> str:
    """The normalised path; SpecError, with the spec's key, where it is not valid."""
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
    return [file for file in storage.list(folder) if includes(path, file.uri)]


def includes(path: str, uri: str) -> bool:
    """Whether a folder or a pattern of input.path includes this file."""
    if any(sign in path for sign in _WILDCARDS):
        return _matches(uri.split("/"), path.split("/"))
    names = uri.removeprefix(f"{path}/")
    return uri != names and names.endswith(".parquet") and not any(map(_is_hidden, names.split("/")))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether names match patterns as in a shell: `*` matches within one name, `**` any number of folders."""
    if not patterns or (not names and patterns[0] != "**"):
        return not names and not patterns
    if patterns[0] == "**":
        deeper = bool(names) and not _is_hidden(names[0]) and _matches(names[1:], patterns)
        return deeper or _matches(names, patterns[1:])
    hidden = _is_hidden(names[0]) and names[0][0] != patterns[0][:1]
    return not hidden and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _is_hidden(name: str) -> bool:
    """Whether a name begins with _ or . as files for the bookkeeping of Spark, Hive and others do."""
    return name.startswith(("_", "."))
