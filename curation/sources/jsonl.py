"""JSON lines, plain or gzip: one object a line; blank lines are no rows.

Rows are counted by looking for newlines, and where each block starts is kept as a byte offset, in the decompressed
bytes where the file is gzip. Reading a block seeks there. gzip cannot seek: it decompresses up to the offset. A
process keeps its stream open, so it decompresses a file once while it reads rising blocks; W processes that share
one file decompress it W times, and a step back starts from the beginning. For large inputs use many gzip files, or
none.
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from curation.errors import SourceError
from curation.recipe.model import BLOCK_BYTES
from curation.sources import files
from curation.sources.base import BadRow, Block, InputRecord
from curation.sources.blocks import Cutter
from curation.sources.files import File, OpenReaders
from curation.sources.json_rows import infer, parse
from curation.sources.lines import LineStream, row_starts, split

EXTENSIONS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


class JsonlSource:
    """JSON-lines files as a :class:`curation.sources.base.Source`.

    Columns and types are inferred from the first mebibyte of rows: integers widen to floats, nulls to strings; where
    two types meet in one column the first stands. A row is bad where its line is not a JSON object in UTF-8, or a
    value is not of its column's type. A key that a row lacks is null; keys that first come up later are passed over.

    Raises:
        SourceError: a file cannot be read, there is no row to tell the columns from, or a column is missing.
    """

    def __init__(self, found: Sequence[File], columns: dict[str, str] | None) -> None:
        self.files = tuple(found)
        self._counts: tuple[int, ...] | None = None
        inferred = self._sample()
        self._names = columns if columns is not None else {name: name for name in inferred.names}
        for name in self._names.values():
            if name not in inferred.names:
                raise SourceError(
                    f"{self.files[0].path}: no column {name!r} in its first rows; {files.closest(name, inferred.names)}"
                )
        self._inner = pa.schema([inferred.field(name) for name in dict.fromkeys(self._names.values())])
        self.schema = pa.schema([(name, self._inner.field(inner).type) for name, inner in self._names.items()])

    def _sample(self) -> pa.Schema:
        for file in self.files:
            with files.reading(file):
                lines = split(LineStream(file).sample())
            if lines:
                schema = infer(lines)
                if schema is None:
                    raise SourceError(f"{file.path}: none of its first {len(lines)} lines is a JSON object")
                return schema
        raise SourceError(f"{self.files[0].path}: holds no rows, so there is nothing to tell its columns from")

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each file, by a scan over its bytes."""
        if self._counts is None:
            self._counts = tuple(sum(len(starts) for starts, _ in row_starts(file)) for file in self.files)
        return self._counts

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints."""
        return files.records(self.files, self.counts)

    def blocks(self, rows: int, size: int = BLOCK_BYTES) -> list[Block]:
        """Cut all positions into blocks of ``rows`` rows, or of fewer where these have about ``size`` bytes."""
        cutter = Cutter(rows, size)
        counts: list[int] = []
        for number, file in enumerate(self.files):
            count = end = 0
            for starts, stop in row_starts(file):
                cutter.add(number, len(starts), stop - end, starts)
                count, end = count + len(starts), stop
            counts.append(count)
        self._counts = tuple(counts)
        return cutter.blocks()

    def locate(self, index: int) -> tuple[str, int]:
        """File and row in it of one position."""
        file, row = files.locate(self.counts, index)
        return self.files[file].path, row

    def read(self, block: Block, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
        """Read a block: exactly ``block.rows`` rows, and which of them are bad.

        Raises:
            SourceError: a file is gone or damaged.
            ValueError: the source has no such column.
        """
        schema = files.subset(self.schema, columns)
        inner = [self._names[name] for name in schema.names]
        tables: list[pa.Table] = []
        bad: list[BadRow] = []
        index = block.start
        for part in block.parts:
            file = self.files[part.file]
            with files.reading(file), _STREAMS.borrow((file,), partial(LineStream, file)) as stream:
                data = stream.rows(part.offset, part.rows)
            table, found = parse(data, part.rows, self._inner)
            bad += [BadRow(index + at, file.path, part.row + at, reason, raw) for at, reason, raw in found]
            tables.append(pa.Table.from_arrays([table.column(name) for name in inner], schema=schema))
            index += part.rows
        return pa.concat_tables(tables), bad


_STREAMS: OpenReaders[LineStream] = OpenReaders()
