"""Rows of files that hold typed columns: Parquet and Arrow IPC.

Opening looks at every file's header, so that the columns are those of all files. Reading a block starts at the nearest
row before it where the format can start (a row group, a record batch), or goes on from where the previous block ended
when this process read that one. No loop runs over rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import types

from curation.columns import closest, convert, plain, subset, type_of, wider
from curation.errors import SourceError
from curation.features import told, with_features
from curation.recipe.model import BLOCK_BYTES, FileSource
from curation.sources import files
from curation.sources.bad_rows import converted
from curation.sources.base import BadRow, Block, InputRecord
from curation.sources.blocks import Cutter
from curation.sources.files import File, OpenReaders
from curation.sources.listing import Listing, check_partitions, partition_column, partition_types


class Reader(Protocol):
    """One open file. ``mapped``: whether its batches lie in the file's own bytes, which may change under them."""

    schema: pa.Schema
    mapped: bool

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

    The columns are those of all files, null where a file lacks one, and those that folders ``key=value`` stand for.
    A column's type is the recipe's, or the one that holds every file's values without loss, as
    :func:`curation.columns.plain` has it; everything is nullable. A row is bad where a column that is read holds
    invalid UTF-8 or does not fit the recipe's type. Features of ``datasets`` go along in the schema's metadata.

    Raises:
        SourceError: a file cannot be read, no file has a column, or files have types or features that do not meet.
    """

    def __init__(
        self,
        listing: Listing,
        open_reader: Callable[[File], Reader],
        spec: FileSource,
        features: Callable[[File, pa.Schema], Mapping[str, Any]] = lambda _, schema: told(schema.metadata),
    ) -> None:
        self.files = listing.files
        self._open_reader = open_reader
        looked = list(files.each(self._look, self.files))
        self.counts = tuple(rows for _, rows in looked)
        headers = _Headers(self.files, [schema for schema, _ in looked], features)
        self._partitions = partition_types(self.files)
        self._names = spec.columns or {name: name for name in (*headers.names, *self._partitions)}
        declared = {name: type_of(kind) for name, kind in (spec.types or {}).items()}
        for name in declared:
            if name not in self._names:
                raise SourceError(f"`schema` of the source names {name!r}, {closest(name, self._names)}")
        kinds = {name: self._kind(headers, inner, declared.get(name)) for name, inner in self._names.items()}
        meant = headers.features()
        self.schema = with_features(
            pa.schema(list(kinds.items())),
            {name: meant[inner] for name, inner in self._names.items() if inner in meant},
        )
        self.notes = (*listing.notes, *headers.notes(self._names, kinds))

    def _look(self, file: File) -> tuple[pa.Schema, int]:
        with files.reading(file):
            reader = self._open_reader(file)
            return reader.schema, reader.rows

    def _kind(self, headers: "_Headers", inner: str, declared: pa.DataType | None) -> pa.DataType:
        if inner in self._partitions:
            headers.check_partitions()
            return self._partitions[inner] if declared is None else declared
        return headers.kind(inner, declared)

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints."""
        self.files = files.with_fingerprints(self.files)
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
            reader = self._open_reader(file)
            return reader.runs(_columns_of(reader, self._names.values()))

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
        names = [self._names[name] for name in schema.names]
        batches: list[pa.RecordBatch] = []
        bad: list[BadRow] = []
        index = block.start
        for part in block.parts:
            file, row = self.files[part.file], part.row
            key = (file, self._open_reader, tuple(names))
            with files.reading(file), _CURSORS.borrow(key, partial(self._cursor, file, names)) as cursor:
                for batch in cursor.take(part.row, part.rows):
                    parts = [
                        self._column(file, batch, name, field.type) for name, field in zip(names, schema, strict=True)
                    ]
                    clean, found = converted(parts, schema)
                    bad += [BadRow(index + at, file.path, row + at, reason, raw) for at, reason, raw in found]
                    batches.append(clean)
                    index += batch.num_rows
                    row += batch.num_rows
        return pa.Table.from_batches(batches, schema), bad

    def _cursor(self, file: File, names: list[str]) -> "_Cursor":
        reader = self._open_reader(file)
        return _Cursor(reader, _columns_of(reader, names))

    def _column(self, file: File, batch: pa.RecordBatch, inner: str, kind: pa.DataType) -> pa.Array:
        if inner in self._partitions:
            return partition_column(file, inner, kind, batch.num_rows)
        if inner in batch.schema.names:
            return batch.column(inner)
        return pa.nulls(batch.num_rows, kind)


def _columns_of(reader: Reader, names: Iterable[str]) -> list[str]:
    """Those of the columns that a file has, each once."""
    return [name for name in dict.fromkeys(names) if name in reader.schema.names]


class _Headers:
    """The schemas and features of a source's files, each once, with the first file that has it, and how many do."""

    def __init__(
        self,
        found: Sequence[File],
        schemas: Sequence[pa.Schema],
        features: Callable[[File, pa.Schema], Mapping[str, Any]],
    ) -> None:
        self._files = found
        self._schemas: dict[tuple[pa.Schema, str], tuple[File, int]] = {}
        for file, schema in zip(found, schemas, strict=True):
            key = (schema, json.dumps(features(file, schema), sort_keys=True))
            first, count = self._schemas.get(key, (file, 0))
            self._schemas[key] = (first, count + 1)
        self.names = list(dict.fromkeys(name for schema, _ in self._schemas for name in schema.names))

    def _of(self, inner: str) -> Iterator[tuple[File, pa.DataType]]:
        """The types of a column, each with the first file that has it so."""
        for (schema, _), (file, _) in self._schemas.items():
            found = schema.names.count(inner)
            if found > 1:
                raise SourceError(f"{file.path}: {found} columns are called {inner!r}, so none of them can be meant")
            if found:
                yield file, schema.field(inner).type

    def kind(self, inner: str, declared: pa.DataType | None) -> pa.DataType:
        """The type that a column is read as."""
        held = list(self._of(inner))
        if not held:
            raise SourceError(f"{self._files[0].path}: no column {inner!r}; {closest(inner, self.names)}")
        kind: pa.DataType | None = pa.null() if declared is None else declared
        for file, found in held:
            kind = wider(kind, found) if declared is None else declared
            if kind is None:
                first, before = held[0]
                raise SourceError(
                    f"{file.path}: column {inner!r} is {found}, but in {first.path} it is {before}: convert one of "
                    "them, say by `schema` of the source what both are to be, or read them in two runs"
                )
        kind = pa.string() if types.is_null(kind) else kind
        for file, found in held:
            try:
                convert(pa.nulls(0, found), kind)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise SourceError(f"{file.path}: column {inner!r} is {found}, and cannot be read as {kind}") from error
        return kind

    def check_partitions(self) -> None:
        """Check that no file has a column of the name of a folder of its own."""
        names = set(self.names)
        for file in self._files:
            check_partitions(file, names)

    def features(self) -> dict[str, Any]:
        """The features of the columns."""
        held: dict[str, tuple[File, Any]] = {}
        for (_, features), (file, _) in self._schemas.items():
            for name, feature in json.loads(features).items():
                first, before = held.setdefault(name, (file, feature))
                if feature != before:
                    raise SourceError(
                        f"{file.path}: column {name!r} is the feature {feature}, but in {first.path} it is {before}: "
                        "convert one of them, or read them in two runs"
                    )
        return {name: feature for name, (_, feature) in held.items()}

    def notes(self, names: Mapping[str, str], kinds: Mapping[str, pa.DataType]) -> Iterator[str]:
        """Which columns some files lack, and which are read as another type than they are."""
        for name, inner in names.items():
            lacking = [
                (file, count) for (schema, _), (file, count) in self._schemas.items() if inner not in schema.names
            ]
            if inner in self.names and lacking:
                count = sum(count for _, count in lacking)
                yield (
                    f"column {name!r} is null in {count:,} of {len(self._files):,} files, which lack it: "
                    f"{files.named([file.path for file, _ in lacking])}"
                )
            for file, found in self._of(inner):
                if _is_remade(found):
                    yield f"column {name!r} is {found} in {file.path} and is read as {kinds[name]}"
                    break


def _is_remade(kind: pa.DataType) -> bool:
    """Whether values are read as others, such as a map's as a list, and do not just lie otherwise in memory."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind != plain(kind) and not kind.extension_name.startswith("datasets.")
    return bool(types.is_map(kind) or any(_is_remade(kind.field(at).type) for at in range(kind.num_fields)))


class _Cursor:
    """Reads some columns of one file forwards, from any row on."""

    def __init__(self, reader: Reader, columns: list[str]) -> None:
        self._reader = reader
        self._columns = columns
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._pending: pa.RecordBatch | None = None
        self._position = -1

    def take(self, row: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows ``row .. row + rows - 1``."""
        if not self._columns:
            yield pa.record_batch([pa.nulls(rows)], ["row"]).select([])
            return
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
                yield _copied(wanted) if self._reader.mapped else wanted


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows in memory of their own."""
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)


_CURSORS: OpenReaders[_Cursor] = OpenReaders()
