"""One Parquet file of the input, read in bounded batches, its columns in darkroom's names and types."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.inputs.batch_sizes import rebatched
from actors.inputs.column_reader import BATCH_ROWS, ColumnReader
from actors.inputs.damaged_pages import is_damage
from actors.inputs.footer_statistics import FooterStatistics
from actors.inputs.texts import Problems, is_text
from actors.inputs.values import as_kept, as_kind, cells_as_kind, is_present, presence
from schemas.columns.cells import LINE_COLUMN, LINE_TYPE, is_cell
from schemas.columns.column_types import storage_type
from schemas.columns.control_lists import first_given, has_images, images_apart
from schemas.columns.fields import FIELD_KINDS, IMAGE_FIELDS, TEXT_FIELDS
from schemas.columns.folder_columns import folder_array, folder_columns, folder_type
from schemas.columns.input_columns import ColumnMap
from schemas.errors import RowError
from schemas.systems.control_parameters import CONTROL_IMAGES
from schemas.wording.printable import shortened

CONVERTED_ROWS = 64
"""Rows whose columns are all converted together. Texts in dictionaries are unfolded then: at most four
megabytes of prompts, and 64 of kept texts."""

_ROUTING_FIELDS = ("row_id", "task", "model")
"""Fields that give a row its name and its route. A file in which one of them is damaged cannot be planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """Neighbouring rows of a file."""

    first_row: int
    """The number of the batch's first row in the file, from 0."""
    num_rows: int
    fields: Mapping[str, pa.Array]
    """Columns by darkroom's names for fields. Images are Hugging Face's structs of bytes and path. A field
    that the input lacks is absent."""
    present: Mapping[str, npt.NDArray[np.bool_]]
    """By image field of the input: whether each row has an image."""
    uris: Mapping[str, pa.Array]
    """By image field: the URIs of the images that are not in the file; null for other rows. A field is absent
    if the batch does not tell which images are in the file."""
    keep: Mapping[str, pa.Array]
    """Kept columns by name, perhaps still in their dictionaries."""
    problems: Mapping[int, RowError]
    """The errors of rows with a value that cannot be used, by position in the batch. The column has null or,
    for a text, its beginning instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRows:
    """Neighbouring rows of a file as pyarrow has read them. They are converted only where they are needed."""

    first_row: int
    """The number of the first of them in the file, from 0."""
    num_rows: int
    batch_from: Callable[[int], RowBatch]
    """The batch that begins with this row of the file, which must be one of these rows."""


def _already_converted(batch: RowBatch) -> DecodedRows:
    return DecodedRows(first_row=batch.first_row, num_rows=batch.num_rows, batch_from=lambda _: batch)


class InputFile:
    """An open Parquet file. Close it, or use it in a `with`."""

    def __init__(
        self, source: BinaryIO, columns: ColumnMap, uri: str = "", beat: Callable[[], None] = lambda: None
    ) -> None:
        """`uri`: that of the file. The names of its folders may give columns that the file itself lacks.

        `beat` is called for each batch that was read.
        """
        self._columns = columns
        footer = pq.read_metadata(source)
        self._types = footer.schema.to_arrow_schema()
        folders = folder_columns(uri)
        self._folders = {name: folders[name] for name in folders if name not in self._types.names}
        self._overruled = {name: folders[name] for name in folders if name in self._types.names}
        whole = {columns.fields[field] for field in _ROUTING_FIELDS if field in columns.fields}
        self._reader = ColumnReader(source, footer, beat, whole)
        self._statistics = FooterStatistics(footer)

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the Parquet reader and the file."""
        self._reader.close()

    @property
    def metadata(self) -> pq.FileMetaData:
        """The file's footer."""
        return self._reader.footer

    def row_group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return self._reader.row_group_of(row)

    def read_routing(
        self, *, with_ids: bool = False, batch_size: int = BATCH_ROWS, first_row: int = 0
    ) -> Iterator[RowBatch]:
        """Batches with only the fields that decide a row's route, and its id if `with_ids`.

        They have all rows from the start of `first_row`'s row group on.
        """
        fields = ("row_id", "task", "model") if with_ids else ("task", "model")
        return self._read(self.row_group_of(first_row), self._routing_columns(fields), batch_size)

    def read_ids(self) -> Iterator[RowBatch]:
        """Batches of all rows, with only their ids. The input must have a column of ids."""
        return self._read(0, self._own([self._columns.fields["row_id"]]), BATCH_ROWS)

    def read_for_checks(
        self, batch_size: int = BATCH_ROWS, *, with_texts: bool = False
    ) -> Iterator[RowBatch]:
        """Batches of all rows, without images. Of texts they only tell which rows have one.

        A column of prompts is not read if the footer's statistics show that every row has one.
        `with_texts`: all texts are read.
        """
        fields = [field for field in FIELD_KINDS if field not in ("row_id", "negative_prompt")]
        columns = self._routing_columns(fields)
        if with_texts:
            columns = [*dict.fromkeys([*columns, *self._text_columns()])]
        return self._read(0, columns, batch_size, with_texts=with_texts)

    def read_texts(self) -> Iterator[RowBatch]:
        """Batches of all rows, with only their texts. The input must have a column of texts."""
        return self._read(0, self._text_columns(), BATCH_ROWS)

    def _text_columns(self) -> list[str]:
        """The file's own columns of texts."""
        return self._own(
            self._columns.fields[field] for field in TEXT_FIELDS if field in self._columns.fields
        )

    def read_rows(self, first_row: int, batch_size: int = CONVERTED_ROWS) -> Iterator[RowBatch]:
        """Batches with every needed column, from `first_row` to the file's end."""
        for decoded in self.decode_rows(first_row, batch_size):
            row, end = max(first_row, decoded.first_row), decoded.first_row + decoded.num_rows
            while row < end:
                batch = decoded.batch_from(row)
                yield batch
                row = batch.first_row + batch.num_rows

    def decode_rows(self, first_row: int, batch_size: int = CONVERTED_ROWS) -> Iterator[DecodedRows]:
        """All rows with every needed column, from the start of `first_row`'s row group to the file's end.

        `batch_size`: the rows that are converted together, at most. pyarrow 26 has no way to begin at a page,
        although it knows whether a file has a page index. So the rows before the first that is needed are
        decoded too, about five million texts a second.
        """
        group, columns = self.row_group_of(first_row), self._own(self._columns.columns())
        row = self._reader.first_row_of(group)
        if not columns:
            yield from map(_already_converted, self._empty_batches(row, batch_size))
            return
        max_rows = batch_size if self._has_lists() else BATCH_ROWS
        for batch, lost in rebatched(self._reader.batches(group, columns, max_rows), batch_size):
            yield DecodedRows(
                first_row=row,
                num_rows=batch.num_rows,
                batch_from=partial(self._converted, batch, lost, row, batch_size),
            )
            row += batch.num_rows

    def _has_lists(self) -> bool:
        """Whether columns are nested, images aside: each slice of them has the values of all rows."""
        fields = {column for field, column in self._columns.fields.items() if field not in IMAGE_FIELDS}
        columns = fields.union(self._columns.keep)
        types = (storage_type(self._types.field(name).type) for name in self._own(columns))
        return any(map(pa.types.is_nested, types))

    def _converted(
        self, batch: pa.RecordBatch, lost: Problems, first_row: int, max_rows: int, row: int
    ) -> RowBatch:
        """At most `max_rows` rows of a batch that begins at `first_row`, from `row` on."""
        start = row - first_row
        rows = batch.slice(start, max_rows)
        problems = {i: lost[start + i] for i in range(rows.num_rows) if start + i in lost}
        arrays = dict(zip(rows.schema.names, rows.columns, strict=True))
        return self._row_batch(arrays, row, rows.num_rows, problems, with_texts=True)

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of these rows, for a message: empty texts if the input has no ids."""
        if "row_id" not in self._columns.fields:
            return [""] * len(rows)
        own = self._own([self._columns.fields["row_id"]])

        def ids_from(group: int) -> Iterator[tuple[int, pa.Array]]:
            for batch in self._read(group, own, BATCH_ROWS):
                yield batch.first_row, batch.fields["row_id"]

        return [*map(str, self._values(rows, ids_from))]

    def locations(self, rows: Sequence[int]) -> list[str]:
        """Where these rows are, for a message: `line 3` if the file is the copy of a text, else `row 1`."""
        if not self._has_lines:
            return [f"row {row}" for row in rows]

        def lines_from(group: int) -> Iterator[tuple[int, pa.Array]]:
            row = self._reader.first_row_of(group)
            for batch, _ in self._reader.batches(group, [LINE_COLUMN], BATCH_ROWS):
                yield row, batch.column(0)
                row += batch.num_rows

        return [f"line {line:,}" for line in self._values(rows, lines_from)]

    def _values(
        self, rows: Sequence[int], arrays_from: Callable[[int], Iterator[tuple[int, pa.Array]]]
    ) -> list[Any]:
        """The values of these rows in a column, of which `arrays_from` reads (first row, values) of all rows
        from a row group on."""
        by_row: dict[int, Any] = {}
        by_group: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            by_group[self.row_group_of(row)].add(row)
        for group, group_rows in sorted(by_group.items()):
            for first_row, array in arrays_from(group):
                stop = first_row + len(array)
                of_array = {row for row in group_rows if first_row <= row < stop}
                by_row |= {row: array[row - first_row].as_py() for row in of_array}
                if group_rows <= by_row.keys():
                    break
        return [by_row[row] for row in rows]

    @property
    def _has_lines(self) -> bool:
        index = self._types.get_field_index(LINE_COLUMN)
        return bool(index >= 0 and self._types.field(index).type == LINE_TYPE)

    def num_nulls(self, field: str) -> int:
        """The number of rows without a value in this field. The column is read if the footer does not say."""
        column = self._columns.fields[field]
        if column in self._folders:
            return self.metadata.num_rows if self._folders[column] is None else 0
        if self._has_cells(column):  # An empty cell is null, too.
            return sum(batch.fields[field].null_count for batch in self._read(0, [column], BATCH_ROWS))
        null_count = self._statistics.null_count(column)
        if null_count is not None:
            return null_count
        return self._reader.count_nulls(column)

    def first_without_id(self) -> str:
        """Where the first row is that has no id, for a message. There must be one."""
        nulls = (
            batch.first_row + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
            for batch in self.read_ids()
            if (ids := batch.fields["row_id"]).null_count
        )
        return self.locations([next(nulls)])[0]

    def contradictions(self) -> dict[str, str]:
        """By column that the job reads: how the file's own values, which count, contradict its folder's name.

        The values are those of the footer's statistics; a file without statistics contradicts nothing.
        """
        found = {}
        for name in self._overruled.keys() & {*self._columns.columns()}:
            bounds, value = self._statistics.bounds(name), self._overruled[name]
            if bounds and bounds != {value}:
                shown = " to ".join(sorted(shortened(bound) for bound in bounds))
                found[name] = (
                    f"the folder's name says {value}, and the file's own column, which counts, {shown}"
                )
        return found

    def _routing_columns(self, fields: Sequence[str]) -> list[str]:
        columns = []
        for field in fields:
            column = self._columns.fields.get(field)
            if column is None or column in self._folders:
                continue
            if field in IMAGE_FIELDS:
                columns += self._presence_column(column)
            elif self._has_control_images and field == "controls":
                columns += self._leaves_without_bytes(column)
            elif field != "prompt" or self._statistics.null_count(column) != 0:
                columns.append(column)
        return columns

    def _presence_column(self, column: str) -> list[str]:
        """The column to read to know which rows have an image, if possible without reading the images.

        URIs are read too. The list is empty if the footer shows that every row has an image in the file.
        """
        arrow_type = storage_type(self._types.field(column).type)
        if not pa.types.is_struct(arrow_type):
            return [column] if is_text(arrow_type) or self._statistics.null_count(column) != 0 else []
        if self._statistics.null_count(f"{column}.bytes") == 0:
            return []
        return [column] if self._has_empty_structs(column) else [f"{column}.path"]

    @property
    def _has_control_images(self) -> bool:
        """Whether the file's `controls` have their images with them."""
        column = self._columns.fields.get("controls")
        if column is None or column in self._folders:
            return False
        return has_images(storage_type(self._types.field(column).type))

    def _leaves_without_bytes(self, column: str) -> list[str]:
        """The leaves of a column of lists, without the bytes of images."""
        paths = (self.metadata.schema.column(i).path for i in range(self.metadata.num_columns))
        return [path for path in paths if path.startswith(f"{column}.") and not path.endswith(".bytes")]

    def _has_empty_structs(self, column: str) -> bool:
        """Whether some structs may have neither bytes nor a path: only reading the bytes then tells which.

        False for a footer without statistics, which does not say: a worker then finds such a row.
        """
        no_bytes, no_path = (
            self._statistics.null_count(f"{column}.bytes"),
            self._statistics.null_count(f"{column}.path"),
        )
        if no_bytes is None or not no_path:
            return False
        try:
            absent = self._reader.count_nulls(f"{column}.path")
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            return True
        return no_bytes > absent and no_path > absent

    def _read(
        self, first_group: int, columns: list[str], batch_size: int, *, with_texts: bool = True
    ) -> Iterator[RowBatch]:
        row = self._reader.first_row_of(first_group)
        if not columns:
            yield from self._empty_batches(row, batch_size)
            return
        for batch, lost in rebatched(self._reader.batches(first_group, columns, batch_size), batch_size):
            arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield self._row_batch(arrays, row, batch.num_rows, lost, with_texts=with_texts)
            row += batch.num_rows

    def _empty_batches(self, row: int, batch_size: int) -> Iterator[RowBatch]:
        while row < self.metadata.num_rows:
            num_rows = min(batch_size, self.metadata.num_rows - row)
            yield self._row_batch({}, row, num_rows, {}, with_texts=True)
            row += num_rows

    def _own(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that the file itself has."""
        return [column for column in columns if column not in self._folders]

    def _image_fields(self) -> list[str]:
        of_lists = CONTROL_IMAGES if self._has_control_images else ()
        return [field for field in IMAGE_FIELDS if field in self._columns.fields or field in of_lists]

    def _row_batch(
        self,
        arrays: Mapping[str, pa.Array],
        first_row: int,
        num_rows: int,
        lost: Problems,
        *,
        with_texts: bool,
    ) -> RowBatch:
        """The batch of rows with these columns of the file, and with those of its folders."""
        problems: Problems = {}
        fields = {}
        for name, column in self._columns.fields.items():
            array = arrays.get(column)
            if column in self._folders:
                array = folder_array(self._folders[column], folder_type(name), num_rows)
            if array is not None and name in TEXT_FIELDS and not with_texts:
                fields[name] = presence(array)
            elif array is not None:
                if name == "controls" and has_images(array.type):
                    array, images = images_apart(array)
                    problems = self._add_images(fields, images) | problems
                convert = cells_as_kind if self._has_cells(column) else as_kind
                fields[name], field_problems = convert(array, name)
                problems = field_problems | problems
        present = {
            field: is_present(fields[field]) if field in fields else np.ones(num_rows, dtype=bool)
            for field in self._image_fields()
        }
        keep = {}
        for name, output_type in self._columns.keep.items():
            if name in self._folders:
                keep[name] = folder_array(self._folders[name], output_type, num_rows)
            elif name in arrays:
                keep[name], column_problems = as_kept(
                    arrays[name], name, self._types.field(name).type, output_type
                )
                problems = column_problems | problems
        return RowBatch(
            first_row=first_row,
            num_rows=num_rows,
            fields=fields,
            present=present,
            uris=self._uris(arrays, fields),
            keep=keep,
            problems=problems | lost,
        )

    def _has_cells(self, column: str) -> bool:
        return column not in self._folders and is_cell(self._types.field(column).type)

    def _add_images(self, fields: dict[str, pa.Array], images: Mapping[str, pa.Array]) -> Problems:
        """Add the images of `controls` to the fields, over those of columns; the problems of rows."""
        problems: Problems = {}
        for field, array in images.items():
            own, field_problems = as_kind(array, field)
            problems = field_problems | problems
            fields[field] = first_given(own, fields[field]) if field in fields else own
        return problems

    def _uris(self, arrays: Mapping[str, pa.Array], fields: Mapping[str, pa.Array]) -> Mapping[str, pa.Array]:
        uris = {}
        for field in self._image_fields():
            column = self._columns.fields.get(field)
            if field not in fields or self._is_path_alone(column or self._columns.fields["controls"], arrays):
                continue
            data, path = (pc.struct_field(fields[field], leaf) for leaf in ("bytes", "path"))
            uris[field] = pc.if_else(data.is_null(), path, None)
        return uris

    def _is_path_alone(self, column: str, arrays: Mapping[str, pa.Array]) -> bool:
        """Whether only the paths of a column's images were read, and some images may be in the file."""
        if column not in arrays:
            return False
        if has_images(arrays[column].type):
            image = arrays[column].type.value_type.field(CONTROL_IMAGES[0]).type
            return bool(pa.types.is_struct(image) and image.get_field_index("bytes") < 0)
        if not pa.types.is_struct(arrays[column].type):
            return False
        has_bytes = "bytes" in {leaf.name for leaf in arrays[column].type}
        return not has_bytes and self._statistics.null_count(f"{column}.bytes") != self.metadata.num_rows
