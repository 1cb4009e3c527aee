"""The statistics in a Parquet file's footer, over all its row groups."""

from collections.abc import Iterator
from functools import cache

import pyarrow.parquet as pq


class FooterStatistics:
    """What a footer tells of the file's leaves: a leaf is a column, or `column.part` of a nested one."""

    def __init__(self, footer: pq.FileMetaData) -> None:
        self._footer = footer
        self.null_count = cache(self._null_count)
        """The number of nulls in a leaf; None where the footer does not say."""

    def _null_count(self, leaf: str) -> int | None:
        statistics = [chunk and chunk.statistics for chunk in self._chunks(leaf)]
        if not all(each and each.has_null_count for each in statistics):
            return None
        return sum(int(each.null_count) for each in statistics if each)

    def bounds(self, leaf: str) -> set[str]:
        """The least and the greatest value of a leaf, as texts; empty where the footer does not say."""
        statistics = [chunk and chunk.statistics for chunk in self._chunks(leaf)]
        if not all(each and each.has_min_max for each in statistics):
            return set()
        least = min(each.min for each in statistics if each)
        return {str(least), str(max(each.max for each in statistics if each))}

    def _chunks(self, leaf: str) -> Iterator[pq.ColumnChunkMetaData | None]:
        """The column chunk of a leaf in each row group; None where there is none."""
        for group in map(self._footer.row_group, range(self._footer.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            yield next((chunk for chunk in chunks if chunk.path_in_schema == leaf), None)
