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

    def start(self, row: int) -> int:
        """The first row of the row group that ``row`` stands in."""
        return int(self._starts[np.searchsorted(self._starts, row, side="right") - 1])

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows from ``start`` on, a row group at a time."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for group in range(first, len(self._starts) - 1):
            yield from self._file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            )
