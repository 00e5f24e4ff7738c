"""Parquet: rows are counted in the footers, and a block reads only from its own row groups.

A row group is decoded batch by batch, so one of a million rows does not have to fit in memory. A block that
starts in the middle of a row group decodes what stands before it there, unless this process has just read that.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.sources import files
from curation.sources.files import File

EXTENSIONS = (".parquet", ".pq")
_BATCH_ROWS = 8_192
_BATCH_BYTES = 1 << 26


class ParquetReader:
    """One open Parquet file."""

    mapped = False

    def __init__(self, file: File) -> None:
        self._file = pq.ParquetFile(
            files.open_arrow(file),
            pre_buffer=not files.is_local_path(file.path),
            page_checksum_verification=True,
        )
        metadata = self._file.metadata
        self.rows = metadata.num_rows
        self.schema: pa.Schema = self._file.schema_arrow
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)

    def runs(self, columns: Sequence[str]) -> list[tuple[int, int]]:
        """The row groups, as the footer has them: what repeats is counted once where it is stored once."""
        groups = [self._file.metadata.row_group(number) for number in range(len(self._starts) - 1)]
        return [(group.num_rows, _bytes(group, columns)) for group in groups]

    def start(self, row: int) -> int:
        """The first row of the row group that ``row`` stands in."""
        return int(self._starts[np.searchsorted(self._starts, row, side="right") - 1])

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows from ``start`` on, a row group at a time."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for group in range(first, len(self._starts) - 1):
            account = self._file.metadata.row_group(group)
            fitting = _BATCH_BYTES * account.num_rows // max(1, _bytes(account, columns))
            rows = max(1, min(_BATCH_ROWS, fitting))
            yield from self._file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False)


def _bytes(group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    """Bytes of some columns of a row group, decompressed."""
    chunks = (group.column(number) for number in range(group.num_columns))
    wanted, below = set(columns), tuple(f"{name}." for name in columns)
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema in wanted or chunk.path_in_schema.startswith(below)
    )
