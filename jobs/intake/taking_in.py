"""Which files of the input need a Parquet copy, and where these are."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.storage.objects import StoredObject
from actors.storage.output import Output
from actors.storage.uris import HUB_SCHEME, join
from jobs.in_flight import map_in_flight
from jobs.intake.formats import PARQUET_ENDINGS, TextFormat, text_format, what_to_do
from jobs.intake.input_stores import InputStores
from jobs.intake.parquet_copies import CopyFolder, ParquetCopy, refuse_large_copy
from schemas.errors import RefusedError, SpecError
from schemas.job import PlannedFile
from schemas.output_layout import input_copy
from schemas.wording.amounts import counted, size_text
from schemas.wording.printable import listed

FILES_AT_ONCE = 4
MAX_NAMED = 5
"""The files that a note names."""
_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierInput:
    """The input with which a job began."""

    paths: Sequence[str]
    """Its input.path."""
    files: Sequence[PlannedFile]
    output: str
    """The output that has the copies of the files."""

    def copies(self) -> dict[tuple[str, int, str], ParquetCopy]:
        """The copies by the name, size and etag of their files, wherever these were."""
        return {
            _content(file): ParquetCopy(name=file.copy, uri=join(self.output, file.copy))
            for file in self.files
            if file.copy
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenIn:
    """The Parquet copies of an input's files."""

    copies: Mapping[str, ParquetCopy]
    """By the URI of the file; a Parquet file that is read itself has none."""
    folder: CopyFolder | None
    """It has those that are not in the output, as long as somebody refers to it."""
    notes: tuple[str, ...]


def take_in(
    files: Sequence[StoredObject], stores: InputStores, earlier: EarlierInput | None, output: Output | None
) -> TakenIn:
    """The copies of these files, which are made unless the job began with them.

    `output`: where they are to be stored, if anywhere. SpecError for a file that cannot be read, or stored
    there.
    RefusedError where a copy was deleted.
    """
    recorded = earlier.copies() if earlier else {}
    copies = {file.uri: recorded[_content(file)] for file in files if _content(file) in recorded}
    for copy in copies.values():
        if stores.of(copy.uri).stat(copy.uri) is None:
            raise RefusedError(
                f"{copy.uri}, the copy of an input file, was deleted since the job began. Put it back, or "
                "choose another output.path for a new job"
            )
    formats = {file.uri: _format(file.uri, stores) for file in files if file.uri not in copies}
    new = [file for file in files if formats.get(file.uri) or _is_new_on_hub(file, copies)]
    folder = CopyFolder() if new else None

    def copied(file: StoredObject) -> ParquetCopy:
        assert folder is not None, "there is one for new copies"
        with stores.of(file.uri).open(file.uri) as source:
            if found := formats[file.uri]:
                return folder.copy_text(source, file, found)
            if output:
                refuse_large_copy(input_copy(posixpath.basename(file.uri), ""), file.size_bytes, output)
            return folder.copy_parquet(source, file)

    made = map_in_flight(copied, new, at_once=FILES_AT_ONCE)
    copies |= {file.uri: copy for file, copy in zip(new, made, strict=True)}
    return TakenIn(copies=copies, folder=folder, notes=_notes(new))


def _is_new_on_hub(file: StoredObject, copies: Mapping[str, ParquetCopy]) -> bool:
    return file.uri.startswith(HUB_SCHEME) and file.uri not in copies


def _format(uri: str, stores: InputStores) -> TextFormat | None:
    """How a text file is read; None for a Parquet file, whatever its name is. SpecError for any other."""
    if uri.lower().endswith(PARQUET_ENDINGS) or stores.of(uri).read_tail(uri, len(_MAGIC)).data in (
        _MAGIC,
        _ENCRYPTED_MAGIC,
    ):
        return None
    if not (by_name := text_format(uri)):
        raise SpecError(
            f"input.path: {uri} is not a Parquet file, and no text file by its name; {what_to_do(uri)}"
        )
    return by_name


def _content(file: PlannedFile | StoredObject) -> tuple[str, int, str]:
    return posixpath.basename(file.uri), file.size_bytes, file.etag


def _notes(new: Sequence[StoredObject]) -> tuple[str, ...]:
    if not new:
        return ()
    names = listed([posixpath.basename(file.uri) for file in new[:MAX_NAMED]])
    more = " and others" if len(new) > MAX_NAMED else ""
    size = size_text(sum(file.size_bytes for file in new))
    return (f"copied as Parquet: {counted(len(new), 'file')} ({names}{more}), {size}",)
