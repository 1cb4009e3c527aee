"""The Parquet copies of the input, stored in an output before the record that names them."""

from collections.abc import Iterable

import pyarrow as pa

from actors.storage.output import Output
from jobs.survey.survey import SurveyedFile


def store_copies(files: Iterable[SurveyedFile], output: Output) -> None:
    """Store the copies of these files that the output does not have yet.

    A driver that is killed before it has written the record leaves copies to which nothing refers. The next
    one finds or makes the same, because their names have the hashes of their contents.
    """
    for name, uri in {file.copy.name: file.copy.uri for file in files if file.copy}.items():
        if uri != output.uri(name):
            with pa.memory_map(uri) as content:
                output.storage.create(output.uri(name), memoryview(content.read_buffer()), {})
