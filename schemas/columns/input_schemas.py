"""The columns of all input files together."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pyarrow as pa

from schemas.columns.cells import is_cell
from schemas.columns.column_types import common_kept_type, fits, id_type, storage_type, unknown_key
from schemas.columns.folder_columns import common_folder_type, folder_columns, folder_type
from schemas.errors import SpecError


class InputSchemas:
    """The columns of all input files. Files with the same columns count once, so any number of files fits."""

    def __init__(self, files: Mapping[str, pa.Schema] = MappingProxyType({})) -> None:
        """`files`: the columns of the first files, by their URI."""
        self._files: dict[tuple[pa.Schema, frozenset[str]], str] = {}
        """The first file with these columns, and these columns of its folders' names."""
        self.folder_types: dict[str, pa.DataType] = {}
        """The columns that the names of folders give, each with the type that all files' values have."""
        for uri, schema in files.items():
            self.add(uri, schema)

    def add(self, uri: str, schema: pa.Schema) -> None:
        """Add the columns of a file. A column that it has itself wins over that of a folder's name."""
        folders = {name: value for name, value in folder_columns(uri).items() if name not in schema.names}
        self._files.setdefault((schema.remove_metadata(), frozenset(folders)), uri)
        for name, value in folders.items():
            if self.folder_types.get(name) != pa.string():
                self.folder_types[name] = common_folder_type([value])

    @property
    def names(self) -> list[str]:
        """The names of all columns, each once."""
        found = (name for schema, folders in self._files for name in [*schema.names, *sorted(folders)])
        return list(dict.fromkeys(found))

    def require(self, column: str) -> None:
        """Raise SpecError if a file lacks the column, or has it more than once."""
        having = next(
            uri for (schema, folders), uri in self._files.items() if column in {*schema.names, *folders}
        )
        for (schema, folders), uri in self._files.items():
            count = schema.names.count(column)
            if count > 1:
                raise SpecError(f"{uri} has {count} columns of the name `{column}`; rename all but one")
            if not count and column not in folders:
                raise SpecError(f"{uri} has no column `{column}`, which {having} has; all files must have it")

    def agree_on(self, column: str) -> bool:
        """Whether each file has one column of this name, and all have it with the same type."""
        counts = {schema.names.count(column) for schema, _ in self._files}
        return counts == {1} and len([*self._types(column)]) == 1

    def misfit(self, field: str, column: str) -> str:
        """The type, and its file, of the first column of this name that cannot fill the field; else empty."""
        for uri, arrow_type in self._types(column):
            if not fits(field, arrow_type):
                shown = storage_type(arrow_type) if is_cell(arrow_type) else arrow_type
                return f"{shown} in {uri}" if len(self._files) > 1 else str(shown)
        if column in self.folder_types and not fits(field, folder_type(field)):
            return "the name of a folder"
        return ""

    def unknown_key(self, field: str, column: str) -> str:
        """What is wrong with a key in the structs of this column, which fills the field; else empty."""
        return next(
            filter(None, (unknown_key(field, arrow_type) for _, arrow_type in self._types(column))), ""
        )

    def id_type(self, column: str) -> pa.DataType:
        """The type that ids have in the output. Raises SpecError if it is not the same for all files."""
        types = {id_type(arrow_type): (arrow_type, uri) for uri, arrow_type in self._types(column)}
        if column in self.folder_types:
            types[pa.string()] = (pa.string(), "the names of folders")
        if len(types) > 1:
            (one, here), (other, there) = types.values()
            raise SpecError(
                f"column `{column}` is {other} in {there} and {one} in {here}: ids of one would "
                "become text, and of the other, numbers; write the files with one type"
            )
        return next(iter(types))

    def kept_type(self, column: str) -> pa.DataType:
        """The type that a kept column has in the output. Raises SpecError if no type holds all values."""
        types = dict(self._types(column))
        if column in self.folder_types:
            types["the names of folders"] = self.folder_types[column]
        return common_kept_type(column, types)

    def _types(self, column: str) -> Iterator[tuple[str, pa.DataType]]:
        """The URI of a file with the column, and the column's type in it, for each type once."""
        seen = set()
        for (schema, _), uri in self._files.items():
            if column in schema.names and (arrow_type := schema.field(column).type) not in seen:
                seen.add(arrow_type)
                yield uri, arrow_type
