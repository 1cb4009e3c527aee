"""The files of the input, found by the paths, folders and patterns in input.path."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from actors.storage.objects import ListedObject, StoredObject
from actors.storage.uris import HUB_SCHEME, S3_SCHEME, normalise
from jobs.intake.formats import split_texts
from jobs.intake.hub_files import parse_hub_path
from jobs.intake.input_stores import InputStores, Source
from jobs.intake.taking_in import EarlierInput
from jobs.survey.folder_files import split_parquet
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec
from schemas.wording.amounts import counted
from schemas.wording.printable import listed

MAX_LISTED_BYTES = 64 << 20
"""Room for the input's files in the job's record: about 200,000."""
ENTRY_BYTES = 150
"""What an entry of the record has besides the file's path and ETag, for rows of a single model."""
_WILDCARDS = "*?["
MAX_NAMED = 5
"""The files that a note about a folder names."""


@dataclass(frozen=True, slots=True)
class InputPath:
    """One path of input.path: a file, a folder, or a folder and a pattern for names below it."""

    name: str
    """The file or the folder."""
    pattern: tuple[str, ...] = ()
    """The pattern, name by name; empty if there is none."""

    def __str__(self) -> str:
        return "/".join([self.name, *self.pattern])

    def includes(self, uri: str) -> bool:
        """Whether the folder or the pattern includes this file."""
        if not uri.startswith(f"{self.name}/"):
            return False
        names = uri.removeprefix(f"{self.name}/").split("/")
        return _matches(names, self.pattern) if self.pattern else not any(map(_is_hidden, names))


def find_files(paths: Iterable[InputPath], stores: InputStores) -> tuple[list[StoredObject], list[str]]:
    """(files, notes): the input's files in the order of their URIs, each once, and a note for each folder in
    which other files are passed over.

    Of a folder these are its Parquet files or, if it has none, its text files.
    """
    files_by_uri: dict[str, StoredObject] = {}
    notes = []
    for path in paths:
        files, others = _expand(path, stores.of(path.name))
        if not files:
            raise SpecError(_nothing_at(path, others))
        if others:
            notes.append(f"not read in {path}: {_names(path, others)}")
        for file in files:
            _check_name(file.uri)
            files_by_uri[file.uri] = file
    files = [files_by_uri[uri] for uri in sorted(files_by_uri)]
    _refuse_too_many(files)
    return files, notes


def _refuse_too_many(files: Sequence[StoredObject]) -> None:
    """Raise SpecError for more files than the job's record can hold, before anything of them is read."""
    num_bytes = sum(len(file.uri.encode()) + len(file.etag) + ENTRY_BYTES for file in files)
    if num_bytes > MAX_LISTED_BYTES:
        most = MAX_LISTED_BYTES * len(files) // num_bytes
        raise SpecError(
            f"input.path: the job's record has no room for {len(files):,} files (about {most:,} with paths "
            "of this length); put the rows into fewer files, or into several jobs"
        )


def input_paths(spec: InputSpec, stores: InputStores, earlier: EarlierInput | None = None) -> list[InputPath]:
    """The paths of input.path. A name with a pattern's signs is a pattern only if nothing has that name.

    Those on the Hub are at the commits with which the job began, if it had the same paths, or at today's.
    """
    paths = [
        _at_commit(path, stores, earlier) if path.startswith(HUB_SCHEME) else path for path in paths_of(spec)
    ]
    return [_parse(path, stores.of(path)) for path in paths]


def _at_commit(path: str, stores: InputStores, earlier: EarlierInput | None) -> str:
    hub_path = parse_hub_path(path)
    if earlier and path in map(_normalised_path, earlier.paths) and not hub_path.is_pinned:
        files = [parse_hub_path(file.uri) for file in earlier.files if file.uri.startswith(HUB_SCHEME)]
        commits = {file.revision for file in files if file.repository == hub_path.repository}
        if len(commits) == 1:
            return str(hub_path._replace(revision=commits.pop()))
    return str(stores.hub.at_commit(hub_path))


def _parse(path: str, storage: Source) -> InputPath:
    names = path.split("/")
    signs = [index for index, name in enumerate(names) if any(sign in name for sign in _WILDCARDS)]
    if not signs or storage.stat(path):
        return InputPath(path)
    for index in signs:
        if not any(True for _ in storage.list_sizes("/".join(names[: index + 1]))):
            return InputPath("/".join(names[:index]), tuple(names[index:]))
    return InputPath(path)


def _names(path: InputPath, others: Sequence[ListedObject]) -> str:
    """How many files these are, and some of their names."""
    names = [file.uri.removeprefix(f"{path.name}/") for file in others]
    packed = any(".parquet." in name.lower() for name in names)
    return f"{counted(len(names), 'file')}, such as {listed(names[:MAX_NAMED])}" + (
        "; a file that is compressed as a whole must be unpacked" if packed else ""
    )


def _nothing_at(path: InputPath, others: Sequence[ListedObject]) -> str:
    if others:
        return (
            f"input.path: there is no file with rows in {path}, only {_names(path, others)}. Rows "
            "are in .txt, .csv, .tsv, .jsonl or .parquet files, of which a column `image` may name images"
        )
    # Nobody means a `*` as part of a name.
    escaped = [f"[{sign}] for `{sign}`" for sign in "?[" if any(sign in name for name in path.pattern)]
    hint = f". If this is the name itself, write {' and '.join(escaped)}" if escaped else ""
    return f"input.path: there is no file with rows at {path} (a file, a folder or a pattern){hint}"


def _check_name(uri: str) -> None:
    """Raise SpecError for a file name that is not valid UTF-8: workers and the job's record need the name."""
    try:
        uri.encode()
        _normalised_path(uri)
    except UnicodeEncodeError as error:
        raise SpecError(f"input.path: {uri!r} has a name that is not valid UTF-8; rename it") from error


def paths_of(spec: InputSpec) -> list[str]:
    """The normalised paths of input.path; SpecError where one, or one of input.pictures, is not valid."""
    for folder in spec.pictures:
        normalised("input.pictures", folder)
    paths = [spec.path] if isinstance(spec.path, str) else spec.path
    return [*map(_normalised_path, paths)]


def _normalised_path(path: str) -> str:
    """The normalised path of input.path, which may be one on the Hub; SpecError where it is not valid."""
    if path.lower().startswith(HUB_SCHEME):
        parse_hub_path(path)
        return path.rstrip("/")
    return normalised("input.path", path)


def normalised(key: str, path: str) -> str:
    """The normalised path; SpecError, with the spec's key, where it is not valid."""
    try:
        return normalise(path)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


def _expand(path: InputPath, storage: Source) -> tuple[list[StoredObject], list[ListedObject]]:
    """(files, others): the files with rows at a path, and what else its folder has."""
    is_bucket = path.name.startswith(S3_SCHEME) and "/" not in path.name.removeprefix(S3_SCHEME)
    stored = None if is_bucket or path.pattern else storage.stat(path.name)
    if stored is not None:
        return [stored], []
    listed_files = (file for file in storage.list_sizes(path.name) if path.includes(file.uri))
    included = sorted(listed_files, key=lambda file: file.uri)
    files, others = (included, []) if path.pattern else split_parquet(included, storage)
    if not files:
        files, others = split_texts(others, path.name)
    found = (file if isinstance(file, StoredObject) else storage.stat(file.uri) for file in files)
    return [file for file in found if file], others


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
