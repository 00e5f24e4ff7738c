"""Arrow IPC streams from strangers, opened without expanding to more than their reader allows.

A few bytes of Arrow can stand for gigabytes: compressed buffers, buffers and strings that many columns refer to,
dictionaries, runs, columns without buffers, rows that take a bit each. Types that expand are refused, what each message
unfolds to is added up before pyarrow reads it, and rows can be limited.
"""

import struct
from collections import deque
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from curation.service.arrow.flatbuffers import MAX_FIELDS, check_tree, is_big_endian, layout_of
from curation.service.errors import Refusal

_LISTS = frozenset({pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST})
_FLAT = frozenset(
    kind.id
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
        *(pa.string(), pa.binary(), pa.large_string(), pa.large_binary()),
    )
)
_UNMEASURED = 4096
"""Bytes of a message that may unfold as it likes: to a few hundred times as many."""
_CONTINUED = 0xFFFFFFFF
_accepted: deque[pa.Schema] = deque([pa.schema([])], maxlen=8)
"""Schemas that were checked lately: looking at each type takes longer than reading the schema."""
_MAX_BATCHES = 4096
_PREFIX = struct.Struct("<II")
_ERRORS = (pa.ArrowException, OSError, ValueError, struct.error)


class BatchStream:
    """A stream of batches, each checked and validated whole as it is read; iterate over it once.

    Args:
        body: the stream; batches that are not compressed are views of it.
        max_bytes: what its compressed buffers may expand to, of all batches together.
        max_rows: of all batches together; None: as many as there are.

    Raises:
        Refusal: (also while it is iterated over) it is not a stream, has a type that is not taken, or passes a limit.
    """

    def __init__(self, body: bytes | pa.Buffer, max_bytes: int, max_rows: int | None = None) -> None:
        self._max_bytes, self._max_rows = max_bytes, max_rows
        try:
            self._stream, self._view = pa.BufferReader(body), memoryview(body)
            first = self._message()
            # pyarrow checks no other message before it reads it as a schema, and then reads wherever that one points.
            if first is None or first.type != "schema":
                raise ValueError("it does not begin with a schema")
            self.schema: pa.Schema = pa.ipc.read_schema(first)
            if is_big_endian(first.metadata.to_pybytes()):
                raise Refusal("bad-body", "the body's numbers are big-endian: send them little-endian")
            _check_schema(self.schema)
        except _ERRORS as error:
            raise _no_stream(error) from error

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        rows = expanded = 0
        while self.schema.names:
            try:
                message = self._message()
                if message is None:
                    return
                body = message.body
                layout = layout_of(message.metadata.to_pybytes())
                rows += layout.rows
                expanded += layout.expanded(memoryview(body or b""), self._max_bytes - expanded)
                self._check_limits(rows, expanded)
                batch = pa.ipc.read_record_batch(message, self.schema)
                batch.validate(full=True)
            except _ERRORS as error:
                raise _no_stream(error) from error
            yield batch

    def _check_limits(self, rows: int, expanded: int) -> None:
        if expanded > self._max_bytes:
            raise Refusal(
                "too-large",
                f"the body's compressed buffers expand to {expanded} bytes or more, and this server's limit "
                f"(max_body_bytes) is {self._max_bytes}",
            )
        if self._max_rows is not None and rows > self._max_rows:
            raise Refusal("too-large", f"the body has {rows} rows or more, and {self._max_rows} is the limit here")

    def _message(self) -> pa.ipc.Message | None:
        """The next message; one by one, which takes half of the time that a reader of messages takes."""
        start = self._stream.tell()
        if start + 8 <= len(self._view):
            size, after = _PREFIX.unpack_from(self._view, start)
            if size == _CONTINUED:
                start, size = start + 4, after
            if size == 0:
                return None
            if size > _UNMEASURED:
                check_tree(self._view[start + 4 : start + 4 + size])
        try:
            return pa.ipc.read_message(self._stream)
        except EOFError:
            return None


def read_batches(
    body: bytes | pa.Buffer, max_bytes: int, max_rows: int | None = None
) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and batches of a stream: see :class:`BatchStream`.

    Raises:
        Refusal: it is not a stream, has a type that is not taken, or passes a limit.
    """
    stream = BatchStream(body, max_bytes, max_rows)
    batches = list(islice(stream, _MAX_BATCHES))
    if len(batches) == _MAX_BATCHES:
        raise Refusal("too-large", f"the body has {_MAX_BATCHES} record batches or more: send fewer, larger ones")
    return stream.schema, batches


def read_table(body: bytes | pa.Buffer, max_bytes: int) -> pa.Table:
    """As :func:`read_batches`, in one table."""
    schema, batches = read_batches(body, max_bytes)
    return pa.Table.from_batches(batches, schema)


def write_table(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    return write_buffer(table).to_pybytes()  # type: ignore[no-any-return]


def write_buffer(table: pa.Table) -> pa.Buffer:
    """An Arrow IPC stream, of a table that may be large: nothing is copied while the interpreter is held."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _no_stream(error: Exception) -> Refusal:
    return Refusal("bad-body", f"the body is not an Arrow IPC stream: {str(error)[:200]}")


def _check_schema(schema: pa.Schema) -> None:
    if any(map(schema.equals, tuple(_accepted))):
        return
    names = schema.names
    if len(names) > MAX_FIELDS:
        raise ValueError(f"it has {len(names)} columns, and {MAX_FIELDS} is the limit")
    if len(set(names)) < len(names):
        raise Refusal("bad-body", f"two columns have one name: {', '.join(map(repr, names))}"[:300])
    for field in schema:
        if not _plain(field.type):
            raise Refusal(
                "bad-body",
                f"column {field.name!r} is {field.type}: send numbers, strings, binary, or lists of them, "
                "not dictionary- or run-encoded",
            )
    _accepted.append(schema.remove_metadata())


def _plain(kind: pa.DataType) -> bool:
    """Whether each row takes at least a bit of some buffer, so that rows cannot outgrow the body."""
    if kind.id in _LISTS:
        return getattr(kind, "list_size", 1) > 0 and kind.value_type.id in _FLAT
    return kind.id in _FLAT
