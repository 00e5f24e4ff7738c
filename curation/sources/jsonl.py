"""JSON lines, plain or gzip: one object a line; blank lines are no rows.

Rows are counted by looking for newlines, and where each block starts is kept as a byte offset, in the decompressed
bytes where the file is gzip. Reading a block seeks there. gzip cannot seek: it decompresses up to the offset. A
process keeps its stream open, so it decompresses a file once while it reads rising blocks; W processes that share
one file decompress it W times, and a step back starts from the beginning. For large inputs use many gzip files, or
none.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial

import pyarrow as pa

from curation.columns import closest, subset, type_of
from curation.errors import SourceError
from curation.recipe.model import BLOCK_BYTES, FileSource
from curation.sources import files
from curation.sources.base import BadRow, Block, InputRecord
from curation.sources.blocks import Cutter
from curation.sources.files import File, OpenReaders
from curation.sources.json_kinds import MOST_KEYS, Kind, settled
from curation.sources.json_rows import parse, read_json
from curation.sources.lines import LineStream, row_starts, rows_in
from curation.sources.listing import Listing, check_partitions, partition_column, partition_types

EXTENSIONS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


class JsonlSource:
    """JSON-lines files as a :class:`curation.sources.base.Source`.

    The columns are the keys of all rows of all files, and those that folders ``key=value`` stand for; opening reads all
    rows for them (:mod:`curation.sources.json_kinds`), unless the recipe names columns and types. A column's type is
    the recipe's, or the one that holds its values: integers widen to floats, nulls alone become strings, and where
    other types meet the first stands. A row is bad where its line is not a JSON object in UTF-8, or a value does not
    fit its column's type, which includes an integer that a float would round. A key that a row lacks is null.

    Raises:
        SourceError: a file cannot be read, there is no row to tell the columns from, or no row has a column.
    """

    def __init__(self, listing: Listing, spec: FileSource) -> None:
        self.files = listing.files
        self.notes: tuple[str, ...] = listing.notes
        self._counts: tuple[int, ...] | None = None
        self._partitions = partition_types(self.files)
        declared = {name: type_of(kind) for name, kind in (spec.types or {}).items()}
        known = {inner for name, inner in (spec.columns or {}).items() if name in declared} | set(self._partitions)
        if spec.columns is not None and known.issuperset(spec.columns.values()):
            seen: dict[str, pa.DataType] = {}
            self._names = spec.columns
        else:
            seen = {field.name: settled(field.type) for field in self._scan().type}
            for file in self.files:
                check_partitions(file, seen)
            self._names = spec.columns or {name: name for name in (*seen, *self._partitions)}
        for name in declared:
            if name not in self._names:
                raise SourceError(f"`schema` of the source names {name!r}, {closest(name, self._names)}")
        kinds = {name: self._kind(name, inner, declared, seen) for name, inner in self._names.items()}
        self._inner = self._readable({self._names[name]: kind for name, kind in kinds.items()})
        self.schema = pa.schema(list(kinds.items()))

    def _kind(
        self, name: str, inner: str, declared: Mapping[str, pa.DataType], seen: Mapping[str, pa.DataType]
    ) -> pa.DataType:
        kind = declared.get(name, self._partitions.get(inner, seen.get(inner)))
        if kind is None:
            raise SourceError(f"{self.files[0].path}: no column {inner!r} in any row; {closest(inner, seen)}")
        for other, same in self._names.items():
            if same == inner and declared.get(other, kind) != kind:
                raise SourceError(f"`schema` of the source: {name!r} and {other!r} are both {inner!r}, so of one type")
        return kind

    def _readable(self, kinds: Mapping[str, pa.DataType]) -> pa.Schema:
        """The schema to parse lines with."""
        schema = pa.schema([(inner, kind) for inner, kind in kinds.items() if inner not in self._partitions])
        if not schema:
            raise SourceError(f"{self.files[0].path}: `columns` of the source names no key of its rows")
        for field in schema:
            if read_json(b"{}", 1, pa.schema([field])) is None:
                raise SourceError(f"{self.files[0].path}: {field.name!r} cannot be {field.type} in JSON lines")
        return schema

    def _scan(self) -> Kind:
        """What stands under the keys of all rows."""
        root = Kind("object")
        counts: list[int] = []
        for file in self.files:
            if any(counts):
                break
            counts.append(_learn(file, root))
        # The other files start from what the first has taught, so that most of their lines bring nothing new.
        start = deepcopy(root)
        for _, crowded in start.crowded(""):
            crowded.left_out = 0
        for kind, count in files.each(partial(_learned, start), self.files[len(counts) :]):
            root.merge(kind)
            counts.append(count)
        self._counts = tuple(counts)
        if not root.fields:
            rows = sum(counts)
            what = f"none of its {rows} lines is a JSON object with a key" if rows else "holds no rows"
            raise SourceError(f"{self.files[0].path}: {what}, so there is nothing to tell its columns from")
        self.notes += tuple(
            f"{kind.left_out:,} values are left out: {f'under {path!r}' if path else 'in the rows'} stand more than "
            f"{MOST_KEYS:,} keys, and those from {kind.first_left_out!r} on are no columns"
            for path, kind in root.crowded("")
        )
        return root

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each file, by a scan over its bytes."""
        if self._counts is None:
            self._counts = tuple(sum(len(starts) for starts, _ in row_starts(file)) for file in self.files)
        return self._counts

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints."""
        self.files = files.with_fingerprints(self.files)
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
            SourceError: a file is gone, damaged, or has changed since the source was opened.
            ValueError: the source has no such column.
        """
        schema = subset(self.schema, columns)
        tables: list[pa.Table] = []
        bad: list[BadRow] = []
        index = block.start
        for part in block.parts:
            file = self.files[part.file]
            with files.reading(file), _STREAMS.borrow((file,), partial(LineStream, file)) as stream:
                data = stream.rows(part.offset, part.rows)
            table, found = parse(data, part.rows, self._inner)
            bad += [BadRow(index + at, file.path, part.row + at, reason, raw) for at, reason, raw in found]
            columns_read = [self._column(file, table, self._names[field.name], field.type) for field in schema]
            tables.append(pa.Table.from_arrays(columns_read, schema=schema))
            index += part.rows
        return pa.concat_tables(tables), bad

    def _column(self, file: File, table: pa.Table, inner: str, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
        if inner in self._partitions:
            return partition_column(file, inner, kind, len(table))
        return table.column(inner)


def _learned(start: Kind, file: File) -> tuple[Kind, int]:
    kind = deepcopy(start)
    return kind, _learn(file, kind)


def _learn(file: File, kind: Kind) -> int:
    """Learn the rows of a file; how many there are."""
    count = 0
    with files.reading(file):
        stream = LineStream(file)
        while data := stream.lines():
            rows = len(rows_in(data)[0])
            if rows:
                kind.learn(data, rows)
            count += rows
    return count


_STREAMS: OpenReaders[LineStream] = OpenReaders()
