"""JSON lines, plain or gzip: one object a line; blank lines are no rows.

Rows are counted by looking for newlines, and where each block starts is kept as a byte offset, in the decompressed
bytes where the file is gzip. Reading a block seeks there. gzip cannot seek: it decompresses up to the offset. A
process keeps its stream open, so it decompresses a file once while it reads rising blocks; W processes that share
one file decompress it W times, and a step back starts from the beginning. For large inputs use many gzip files, or
none.

A block is parsed by pyarrow in one go. Only where that fails is it halved until the bad lines stand alone:
O(bad · log rows) parses.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
from pyarrow import types

from curation.errors import SourceError
from curation.manifest import InputRecord
from curation.source import BadRow, Block, Part
from curation.sources import files
from curation.sources.files import File, OpenReaders

EXTENSIONS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_CHUNK = 1 << 20
_SAMPLE = 1 << 20
_PARSED_AT_ONCE = 1 << 30
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\n\r\x0b\x0c"
_IS_BLANK = np.zeros(256, bool)
_IS_BLANK[list(_BLANK)] = True


class JsonlSource:
    """JSON-lines files as a :class:`curation.source.Source`.

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
                lines = _split(_LineStream(file).sample())
            if lines:
                schema = _infer(lines)
                if schema is None:
                    raise SourceError(f"{file.path}: none of its first {len(lines)} lines is a JSON object")
                return schema
        raise SourceError(f"{self.files[0].path}: holds no rows, so there is nothing to tell its columns from")

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each file, by a scan over its bytes."""
        if self._counts is None:
            self._counts = tuple(sum(len(starts) for starts in _row_starts(file)) for file in self.files)
        return self._counts

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints."""
        return files.records(self.files, self.counts)

    def blocks(self, rows: int) -> list[Block]:
        """Cut all positions into blocks of ``rows``; the last is shorter. One scan over the bytes of all files."""
        if rows < 1:
            raise ValueError(f"a block has at least 1 row, not {rows}")
        counts: list[int] = []
        offsets: list[dict[int, int]] = []
        total = 0
        for file in self.files:
            kept: dict[int, int] = {}
            count = 0
            for starts in _row_starts(file):
                if count == 0 and len(starts):
                    kept[0] = int(starts[0])
                first = -(total + count) % rows
                kept.update(
                    zip(range(count + first, count + len(starts), rows), starts[first::rows].tolist(), strict=True)
                )
                count += len(starts)
            counts.append(count)
            offsets.append(kept)
            total += count
        self._counts = tuple(counts)
        return [
            Block(
                block.number,
                block.start,
                block.rows,
                tuple(Part(part.file, part.row, part.rows, offsets[part.file][part.row]) for part in block.parts),
            )
            for block in files.cut(counts, rows)
        ]

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
            with files.reading(file), _STREAMS.borrow((file,), partial(_LineStream, file)) as stream:
                data = stream.rows(part.offset, part.rows)
            table, found = _parse(data, part.rows, self._inner)
            bad += [BadRow(index + at, file.path, part.row + at, reason, raw) for at, reason, raw in found]
            tables.append(pa.Table.from_arrays([table.column(name) for name in inner], schema=schema))
            index += part.rows
        return pa.concat_tables(tables), bad


def _row_starts(file: File) -> Iterator[npt.NDArray[np.int64]]:
    """int64 byte offsets where rows start, chunk by chunk; memory stays at a few chunks or the longest line."""
    with files.reading(file):
        stream = _LineStream(file)
        while data := stream.lines():
            yield stream.offset - len(data) + _rows_in(data)[0]


def _rows_in(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the lines that are not blank start, and where they end (before the newline)."""
    values = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(values == ord("\n"))
    if len(values) and values[-1] != ord("\n"):
        ends = np.append(ends, len(values))
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    if len(starts) and _IS_BLANK[values[starts]].any():
        filled = np.logical_or.reduceat(~_IS_BLANK[values], starts)
        starts, ends = starts[filled], ends[filled]
    return starts, ends


class _LineStream:
    """A file's bytes, from any row on; what was read ahead is kept for the next block."""

    def __init__(self, file: File) -> None:
        source = files.open_arrow(file, mapped=False)
        self._stream = gzip.GzipFile(fileobj=source) if file.path.endswith(".gz") else source
        self._ahead = b""
        self.offset = 0

    def lines(self) -> bytes:
        """Some whole lines, and move ``offset`` behind them; nothing at the end of the file."""
        pieces = [self._ahead]
        self._ahead = b""
        while not (whole := pieces[-1].rfind(b"\n") + 1) and (chunk := self._stream.read(_CHUNK)):
            pieces.append(chunk)
        if whole:
            pieces[-1], self._ahead = pieces[-1][:whole], pieces[-1][whole:]
        data = b"".join(pieces)
        if self.offset == 0 and data.startswith(_BOM):
            data = b" " * len(_BOM) + data[len(_BOM) :]
        self.offset += len(data)
        return data

    def sample(self) -> bytes:
        """The first lines, up to ``_SAMPLE`` bytes or somewhat more, and one that is not blank if there is any."""
        head = b""
        while (len(head) < _SAMPLE or not head.strip()) and (data := self.lines()):
            head += data
        return head

    def rows(self, offset: int, rows: int) -> bytes:
        """The bytes of ``rows`` rows from ``offset`` on, with blank lines between them.

        Raises:
            EOFError: the file ends before.
        """
        if self.offset <= offset <= self.offset + len(self._ahead):
            self._ahead = self._ahead[offset - self.offset :]
        else:
            self._stream.seek(offset)
            self._ahead = b""
        self.offset = offset
        pieces: list[bytes] = []
        while rows:
            data = self.lines()
            if not data:
                raise EOFError(f"it has {rows} rows fewer than when they were counted: has it changed?")
            ends = _rows_in(data)[1]
            if len(ends) > rows:
                stop = int(ends[rows - 1]) + 1
                self._ahead = data[stop:] + self._ahead
                self.offset -= len(data) - stop
                data, ends = data[:stop], ends[:rows]
            pieces.append(data)
            rows -= len(ends)
        return b"".join(pieces)


_STREAMS: OpenReaders[_LineStream] = OpenReaders()


def _split(data: bytes) -> list[bytes]:
    return [line for line in map(bytes.strip, data.split(b"\n")) if line]


def _parse(data: bytes, rows: int, schema: pa.Schema) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    """Parse rows; bad ones are null and stand in the list, as (row, reason, raw)."""
    table = _read_json(data, rows, schema)
    if table is not None:
        return table, []
    lines = _split(data)
    good: list[pa.Table] = []
    bad: list[tuple[int, str, str]] = []
    spans = [(0, len(lines))]
    while spans:
        start, stop = spans.pop()
        table = _read_json(b"\n".join(lines[start:stop]), stop - start, schema)
        if table is not None:
            good.append(table)
        elif stop - start == 1:
            bad.append((start, _reason(lines[start], schema), files.raw_text(lines[start])))
        else:
            middle = (start + stop) // 2
            spans += [(middle, stop), (start, middle)]
    mask = np.zeros(len(lines), bool)
    mask[[row for row, _, _ in bad]] = True
    order = np.cumsum(~mask) - 1
    return pa.concat_tables([*good, schema.empty_table()]).take(pa.array(order, mask=mask)), bad


def _read_json(data: bytes, rows: int, schema: pa.Schema | None) -> pa.Table | None:
    """Parse lines in one go; None where any of them is bad."""
    if rows > 1 and len(data) > _PARSED_AT_ONCE:
        return None
    if not _is_utf8(data) or not _one_object_a_line(data):
        return None
    known = {} if schema is None else {"explicit_schema": schema, "unexpected_field_behavior": "ignore"}
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(**known),
        )
    except (pa.ArrowException, ValueError):
        return None
    if table.num_rows != rows:
        return None
    return table if schema is None else table.select(schema.names)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _one_object_a_line(data: bytes) -> bool:
    """Whether every line is ``{...}``: with as many rows as lines, none of them can then span two."""
    values = np.frombuffer(data, np.uint8)
    starts, ends = _rows_in(data)
    last = values[ends - 1]
    last = np.where((last == ord("\r")) & (ends > 1), values[ends - 2], last)
    return bool((values[starts] == ord("{")).all() and (last == ord("}")).all())


def _reason(line: bytes, schema: pa.Schema) -> str:
    """Why a line is bad."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError) as error:
        return f"line is not JSON: {error}"
    if not isinstance(row, dict):
        return f"line is not a JSON object: {_short(row)}"
    for field in schema:
        if field.name in row:
            one = json.dumps({field.name: row[field.name]}).encode()
            if _read_json(one, 1, pa.schema([field])) is None:
                return f"column {field.name!r}: expected {field.type}, got {_short(row[field.name])}"
    return "line is not JSON that can be read: a key stands twice in it, or a text holds half a surrogate pair"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _infer(lines: list[bytes]) -> pa.Schema | None:
    """The schema of rows, in file order of the keys; None where no line is a JSON object."""
    kinds = _kinds(lines)
    if kinds is None:
        return None
    for name in [name for name, kind in kinds.items() if types.is_float64(kind)]:
        if _needs_unsigned(name, lines):
            kinds[name] = pa.uint64()
    return pa.schema([(name, _settled(kind)) for name, kind in kinds.items()])


def _needs_unsigned(name: str, lines: list[bytes]) -> bool:
    """Whether a column holds integers above int64, such as hashes; pyarrow would round them to floats."""
    values = set()
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get(name), int | float):
            values.add(row[name])
    return all(type(value) is int and 0 <= value < 1 << 64 for value in values) and max(values, default=0) >= 1 << 63


def _kinds(lines: list[bytes]) -> dict[str, pa.DataType] | None:
    table = _read_json(b"\n".join(lines), len(lines), None)
    if table is not None:
        return dict(zip(table.schema.names, table.schema.types, strict=True))
    if len(lines) == 1:
        return None
    middle = len(lines) // 2
    first, second = _kinds(lines[:middle]), _kinds(lines[middle:])
    if first is None or second is None:
        return second if first is None else first
    return first | {name: _widened(first.get(name, pa.null()), kind) for name, kind in second.items()}


def _widened(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type for both; the first where there is none."""
    if types.is_null(one) or (types.is_integer(one) and types.is_floating(other)):
        return other
    if types.is_timestamp(one) and types.is_string(other):
        return other
    if types.is_list(one) and types.is_list(other):
        return pa.list_(_widened(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        fields |= {field.name: _widened(fields.get(field.name, pa.null()), field.type) for field in other}
        return pa.struct(list(fields.items()))
    return one


def _settled(kind: pa.DataType) -> pa.DataType:
    """Nulls become strings, and so do timestamps: pyarrow takes texts that look like dates for them."""
    if types.is_null(kind) or types.is_timestamp(kind):
        return pa.string()
    if types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, _settled(field.type)) for field in kind])
    return kind
