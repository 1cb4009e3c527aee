"""The Parquet file that a sweep becomes, and what is printed of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from actors.storage.stores import Stores
from actors.storage.uris import S3_SCHEME, normalise
from jobs.sweeps.expansion import TABLE, Expansion, read_expansion
from jobs.sweeps.table_rows import DEADLINE_S
from schemas.errors import RefusedError, SpecError, StorageError
from schemas.wording.amounts import counted
from schemas.wording.next_commands import command, next_lines
from schemas.wording.printable import escaped, listed, shortened

MAX_ROWS = 1_000_000
"""The most rows that are written unless somebody says that so many are meant."""
GROUP_ROWS = 65_536
GROUP_BYTES = 128 << 20
"""When the rows so far are written as a row group."""
NUM_SHOWN = 3
"""The ids that are printed."""


def expand(sweep: Path, rows: str, console: Console, *, many: bool = False) -> None:
    """Write the rows of a sweep to a new Parquet file, and print what it has.

    `many`: there may be more than MAX_ROWS. RefusedError where there are, or where the file exists.
    """
    uri = _new_file(rows)
    expansion = read_expansion(sweep)
    if expansion.num_rows > MAX_ROWS and not many:
        raise RefusedError(
            f"{sweep} would become {expansion.num_rows:,} rows: {_factors(expansion)}. Shorten its lists, or "
            "add --yes if so many are meant"
        )
    if not expansion.num_rows:
        raise SpecError(f"{sweep}: the table under rows has no rows")
    with _created(uri) as path:
        row_ids = _write(expansion, path, console)
    _print_result(expansion, rows, row_ids, console)


def _new_file(rows: str) -> str:
    """The URI of the file; RefusedError if it exists."""
    uri = normalise(rows)
    if not uri.lower().endswith((".parquet", ".pq", ".parq")):
        raise SpecError(
            f"{shortened(rows)}: the rows are written as Parquet; choose a name such as rows.parquet"
        )
    if Stores(DEADLINE_S).of(uri).stat(uri) if uri.startswith(S3_SCHEME) else os.path.lexists(uri):
        raise _exists(uri)
    return uri


def _exists(uri: str) -> RefusedError:
    return RefusedError(f"{uri} exists, and a job may be reading it; choose another name, or delete it")


@contextmanager
def _created(uri: str) -> Iterator[str]:
    """The path of a file to write; then `uri` has it, whole, unless something has this name already."""
    is_local = not uri.startswith(S3_SCHEME)
    try:
        if is_local:
            os.makedirs(os.path.dirname(uri), exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".darkroom-rows-", dir=os.path.dirname(uri) if is_local else None
        ) as folder:
            path = os.path.join(folder, "rows.parquet")
            yield path
            if not (_linked(path, uri) if is_local else _uploaded(path, uri)):
                raise _exists(uri)
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error


def _linked(path: str, uri: str) -> bool:
    """Whether the file got this name, which nothing had."""
    try:
        os.link(path, uri)
    except FileExistsError:
        return False
    return True


def _uploaded(path: str, uri: str) -> bool:
    """Whether the file became this object, which did not exist."""
    with pa.memory_map(path) as content:
        return Stores(DEADLINE_S).of(uri).create(uri, memoryview(content.read_buffer()), {})


def _write(expansion: Expansion, path: str, console: Console) -> list[str]:
    """The first ids of the rows, all of which are written to a file."""
    columns = (TextColumn("writing rows"), BarColumn(30), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    row_ids: list[str] = []
    with bar, pq.ParquetWriter(path, expansion.schema, compression="zstd") as writer:
        task = bar.add_task("", total=expansion.num_rows)
        for group in _row_groups(expansion):
            row_ids = row_ids or group["row_id"].slice(0, NUM_SHOWN).to_pylist()
            writer.write_table(group)
            bar.advance(task, group.num_rows)
    return row_ids


def _row_groups(expansion: Expansion) -> Iterator[pa.Table]:
    batches: list[pa.RecordBatch] = []
    for batch in expansion.batches():
        batches.append(batch)
        num_bytes = sum(each.nbytes for each in batches)
        if num_bytes >= GROUP_BYTES or sum(each.num_rows for each in batches) >= GROUP_ROWS:
            yield pa.Table.from_batches(batches)
            batches = []
    if batches:
        yield pa.Table.from_batches(batches)


def _factors(expansion: Expansion) -> str:
    """What is multiplied: `2 rows of the table x 3 values of prompt x 4 of seed`."""
    factors = [counted(expansion.table.num_rows, "row") + " of the table"] if expansion.table else []
    for axis in expansion.axes:
        names = " with ".join(field.name for field in axis.fields)
        factors.append(f"{counted(len(axis), 'value')} of {names}")
    return " x ".join(factors)


def _print_result(expansion: Expansion, rows: str, row_ids: list[str], console: Console) -> None:
    names = [name for name in expansion.schema.names if name.startswith("sweep_")]
    lines = [
        f"{rows}: {counted(expansion.num_rows, 'row')} ({_factors(expansion)})",
        f"row ids: {listed(row_ids)}{', ...' if expansion.num_rows > len(row_ids) else ''}",
    ]
    if names:
        lines.append(f"the output keeps {listed(names)}")
    if TABLE in names:
        lines[-1] += f"; {TABLE} has the ids of the table's rows"
    if expansion.replaced:
        lines.append(f"replaced columns of the table: {listed(expansion.replaced)}")
    spec = f"{Path(rows).stem}.yaml"
    lines += [
        *next_lines(
            [
                (command("init", rows), f"writes {spec}, a spec for these rows"),
                (command("try", spec), "generates some of them, here and now"),
            ]
        ),
    ]
    for line in lines:
        console.print(escaped(line), soft_wrap=True)
