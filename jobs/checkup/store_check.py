"""Whether the store of an output keeps what darkroom commits."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from actors.parts.commit import probe
from actors.storage.output import open_output
from actors.storage.uris import S3_SCHEME, join, normalise
from jobs.checkup.finding import Finding, ok
from schemas.output_layout import OWN_FOLDER

DEADLINE_S = 8.0
"""How long requests are repeated."""


def check_store(path: str) -> Iterator[Finding]:
    """Write to the output's folder as a run does, and remove what was written."""
    uri = normalise(path)
    absent = [] if uri.startswith(S3_SCHEME) else _absent_folders(join(uri, OWN_FOLDER))
    try:
        probe(open_output(uri, deadline_s=DEADLINE_S))
    finally:
        for folder in [*_folders_below(absent), *absent]:
            with suppress(OSError):  # A run that began in the meantime has filled it.
                os.rmdir(folder)
    yield ok(f"{path} honours the conditional writes with which darkroom commits")


def _folders_below(absent: Sequence[str]) -> list[str]:
    """The folders that are now below the first of those that did not exist, the deepest first."""
    return [folder for folder, _, _ in os.walk(absent[0], topdown=False)][:-1] if absent else []


def _absent_folders(path: str) -> list[str]:
    """The folders of the path that do not exist, the deepest first."""
    absent = []
    while not os.path.lexists(path):
        absent.append(path)
        path = os.path.dirname(path)
    return absent
