"""Errors of the libraries that read Parquet, as errors of darkroom."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from schemas.errors import DarkroomError


@contextmanager
def parquet_errors_as(error_type: type[DarkroomError], message: str) -> Iterator[None]:
    """While the block runs, an error of pyarrow or of the system is raised as `error_type`.

    Its text is `message`, a colon, and the library's own text. ValueError is such an error too: a text or a
    statistic in the file may be invalid UTF-8, and a damaged length may lead before the file's beginning.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise error_type(f"{message}: {error}") from error
