"""Rows of files that hold typed columns: Parquet and Arrow IPC.

Reading a block starts at the nearest row before it where the format can start (a row group, a record batch), or
goes on from where the previous block ended when this process read that one. No loop runs over rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from curation.arrow import holds_text, lossless, plain
from curation.errors import SourceError
from curation.recipe.model import BLOCK_BYTES
from curation.sources import files
from curation.sources.base import BadRow, Block, InputRecord
from curation.sources.blocks import Cutter
from curation.sources.files import File, OpenReaders


class Reader(Protocol):
    """One open file."""

    schema: pa.Schema

    @property
    def rows(self) -> int:
        """How many the file has."""

    def runs(self, columns: Sequence[str]) -> list[tuple[int, int]]:
        """Runs of rows in their order, each as its rows and about how many bytes these columns of it have in memory."""

    def start(self, row: int) -> int:
        """The last row up to ``row`` where reading can start."""

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows from ``start`` to the end of the file."""


class ColumnarSource:
    """Files of typed columns as a :class:`curation.sources.base.Source`.

    Types are those of the first file: dictionaries decoded, everything nullable. In the other files a column must
    be of that type or of one that converts without loss. A row is bad where a column that is read holds invalid
    UTF-8.

    Raises:
        SourceError: a file cannot be read, or lacks a column.
    """

    def __init__(
        self, found: Sequence[File], open_reader: Callable[[File], Reader], columns: dict[str, str] | None
    ) -> None:
        self.files = tuple(found)
        self._open_reader = open_reader
        self._counts: tuple[int, ...] | None = None
        first = self._schema_of(self.files[0])
        self._names = columns if columns is not None else {name: name for name in first.names}
        self._expected = self._settle(first)
        self.schema = pa.schema(list(self._expected.items()))

    def _settle(self, first: pa.Schema) -> dict[str, pa.DataType]:
        """Types by column; a column of nulls alone takes its type from the first file that has one."""
        types = {name: plain(self._field(self.files[0], first, name)) for name in self._names}
        for file in self.files[1:]:
            unknown = [name for name, kind in types.items() if pa.types.is_null(kind)]
            if not unknown:
                break
            other = self._schema_of(file)
            types |= {name: plain(self._field(file, other, name)) for name in unknown}
        return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}

    def _schema_of(self, file: File) -> pa.Schema:
        with files.reading(file):
            schema: pa.Schema = self._open_reader(file).schema
        return schema

    def _field(self, file: File, schema: pa.Schema, name: str) -> pa.DataType:
        inner = self._names[name]
        found = schema.names.count(inner)
        if found == 0:
            raise SourceError(f"{file.path}: no column {inner!r}; {files.closest(inner, schema.names)}")
        if found > 1:
            raise SourceError(f"{file.path}: {found} columns are called {inner!r}, so none of them can be meant")
        return schema.field(inner).type

    def _open(self, file: File) -> Reader:
        """Open a file and check that its columns are those of the first."""
        reader = self._open_reader(file)
        for name, kind in self._expected.items():
            found = self._field(file, reader.schema, name)
            if not lossless(found, kind):
                raise SourceError(
                    f"{file.path}: column {self._names[name]!r} is {found}, but in {self.files[0].path} it is {kind}: "
                    "convert one of them, or read them in two runs"
                )
        return reader

    def _cursor(self, file: File, columns: list[str]) -> "_Cursor":
        return _Cursor(self._open(file), list(dict.fromkeys(columns)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each file, from footers or batch headers."""
        if self._counts is None:
            self._counts = tuple(files.each(self._count, self.files))
        return self._counts

    def _count(self, file: File) -> int:
        with files.reading(file):
            return self._open(file).rows

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints."""
        return files.records(self.files, self.counts)

    def blocks(self, rows: int, size: int = BLOCK_BYTES) -> list[Block]:
        """Cut all positions into blocks of ``rows`` rows, or of fewer where these have about ``size`` bytes."""
        cutter = Cutter(rows, size)
        for number, runs in enumerate(files.each(self._runs, self.files)):
            for count, weight in runs:
                cutter.add(number, count, weight)
        return cutter.blocks()

    def _runs(self, file: File) -> list[tuple[int, int]]:
        with files.reading(file):
            return self._open(file).runs(list(dict.fromkeys(self._names.values())))

    def locate(self, index: int) -> tuple[str, int]:
        """File and row in it of one position."""
        file, row = files.locate(self.counts, index)
        return self.files[file].path, row

    def read(self, block: Block, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
        """Read a block: exactly ``block.rows`` rows, and which of them are bad.

        Raises:
            SourceError: a file is gone, damaged, or of other columns than the first.
            ValueError: the source has no such column.
        """
        schema = files.subset(self.schema, columns)
        names = [self._names[name] for name in schema.names]
        batches: list[pa.RecordBatch] = []
        bad: list[BadRow] = []
        index = block.start
        for part in block.parts:
            file, row = self.files[part.file], part.row
            key = (file, self._open_reader, tuple(names), schema)
            with files.reading(file), _CURSORS.borrow(key, partial(self._cursor, file, names)) as cursor:
                for batch in cursor.take(part.row, part.rows):
                    converted = pa.RecordBatch.from_arrays(
                        [_cast(batch.column(name), field.type) for name, field in zip(names, schema, strict=True)],
                        schema=schema,
                    )
                    clean, found = _only_valid(converted)
                    bad += [BadRow(index + at, file.path, row + at, reason, raw) for at, reason, raw in found]
                    batches.append(clean)
                    index += batch.num_rows
                    row += batch.num_rows
        return pa.Table.from_batches(batches, schema), bad


class _Cursor:
    """Reads one file forwards, from any row on."""

    def __init__(self, reader: Reader, columns: list[str]) -> None:
        self._reader = reader
        self._columns = columns
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._pending: pa.RecordBatch | None = None
        self._position = -1

    def take(self, row: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows ``row .. row + rows - 1``."""
        start = self._position if row == self._position else self._reader.start(row)
        if not start <= self._position <= row:
            self._batches, self._pending, self._position = self._reader.batches(start, self._columns), None, start
        while rows:
            batch = self._pending if self._pending is not None else next(self._batches, None)
            if batch is None:
                raise EOFError(f"it ends at row {self._position}, before row {row + rows}: has it changed?")
            skip = min(row - self._position, batch.num_rows)
            wanted = batch.slice(skip, rows)
            used = skip + wanted.num_rows
            self._pending = batch.slice(used) if used < batch.num_rows else None
            self._position += used
            row += wanted.num_rows
            rows -= wanted.num_rows
            if wanted.num_rows:
                yield wanted


_CURSORS: OpenReaders[_Cursor] = OpenReaders()


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _only_valid(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[tuple[int, str, str | None]]]:
    """Null the rows that hold invalid UTF-8; give their numbers, reasons and raw text."""
    bad: dict[int, tuple[int, str, str | None]] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if holds_text(field.type) and not _is_valid(column):
            for row in _invalid_rows(column):
                bad.setdefault(row, (row, f"column {field.name!r}: invalid UTF-8", _raw(column, row)))
    if not bad:
        return batch, []
    mask = np.zeros(batch.num_rows, bool)
    mask[list(bad)] = True
    return batch.take(pa.array(np.arange(batch.num_rows), mask=mask)), [bad[row] for row in sorted(bad)]


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            return False
        raise
    return True


def _invalid_rows(column: pa.Array) -> list[int]:
    """Rows with invalid UTF-8, by halving: O(bad · log rows) validations."""
    found: list[int] = []
    spans = [(0, len(column))]
    while spans:
        start, size = spans.pop()
        piece = column.slice(start, size)
        # A slice of lists still validates all of their values, so nested rows are copied out first.
        if not _is_valid(piece if _is_flat(piece.type) else pa.concat_arrays([piece.take(pa.array(range(size)))])):
            if size == 1:
                found.append(start)
            else:
                half = size // 2
                spans += [(start, half), (start + half, size - half)]
    return sorted(found)


def _is_flat(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _raw(column: pa.Array, row: int) -> str | None:
    if not _is_flat(column.type):
        return None
    value = column.slice(row, 1).cast(pa.large_binary())[0].as_py()
    return files.raw_text(value)
