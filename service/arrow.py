"""Arrow IPC streams from strangers, opened without expanding to more than their reader allows.

A few bytes of Arrow can stand for gigabytes: compressed buffers, dictionaries, runs, columns without buffers. Types
that expand are refused, and what the buffers of each batch decompress to is added up before any of them is read.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from curation.service.errors import Refusal

# Fields of the flatbuffer tables Message and RecordBatch, as Arrow's format/Message.fbs numbers them.
_HEADER_TYPE, _HEADER, _RECORD_BATCH = 1, 2, 3
_BUFFERS, _COMPRESSION = 2, 3
_PLAIN = -1
_LISTS = frozenset({pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST})
_FLAT = frozenset(
    kind.id
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
        *(pa.string(), pa.binary(), pa.large_string(), pa.large_binary()),
    )
)


def read_batches(body: bytes, max_bytes: int) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and batches of a stream, each validated whole.

    Raises:
        Refusal: it is not a stream, has a type that is not taken, or expands to more than ``max_bytes``.
    """
    with _reading():
        messages = _messages(body)
        if not messages:
            raise ValueError("it has no schema")
        schema, messages = pa.ipc.read_schema(messages[0]), messages[1:]
        if not schema.names:
            return schema, []
        for field in schema:
            if not _plain(field.type):
                raise Refusal(
                    "bad-body",
                    f"column {field.name!r} is {field.type}: send numbers, strings, binary, or lists of them, "
                    "not dictionary- or run-encoded",
                )
        expanded = sum(map(_expanded, messages))
        if expanded > max_bytes:
            raise Refusal(
                "too-large",
                f"the body's compressed buffers expand to {expanded} bytes, and this server's limit (max_body_bytes) "
                f"is {max_bytes}",
            )
        batches = [pa.ipc.read_record_batch(message, schema) for message in messages]
        for batch in batches:
            batch.validate(full=True)
    return schema, batches


def read_table(body: bytes, max_bytes: int) -> pa.Table:
    """As :func:`read_batches`, in one table."""
    schema, batches = read_batches(body, max_bytes)
    return pa.Table.from_batches(batches, schema)


def write_table(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _messages(body: bytes) -> list[pa.ipc.Message]:
    """All of a stream's messages; one by one, which takes half of the time that a reader of messages takes."""
    stream, messages = pa.BufferReader(body), []
    try:
        while True:
            messages.append(pa.ipc.read_message(stream))
    except EOFError:
        return messages


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise Refusal("bad-body", f"the body is not an Arrow IPC stream: {str(error)[:200]}") from error


def _plain(kind: pa.DataType) -> bool:
    """Whether each row takes at least a bit of some buffer, so that rows cannot outgrow the body."""
    if kind.id in _LISTS:
        return getattr(kind, "list_size", 1) > 0 and _plain(kind.value_type)
    return kind.id in _FLAT


def _expanded(message: pa.ipc.Message) -> int:
    """Bytes that a message's buffers take once they are decompressed; 0 where it has none."""
    if message.body is None:
        return 0
    meta, body = memoryview(message.metadata), memoryview(message.body)
    (root,) = struct.unpack_from("<I", meta, 0)
    kind, header = _field(meta, root, _HEADER_TYPE), _field(meta, root, _HEADER)
    if kind is None or header is None or meta[kind] != _RECORD_BATCH:
        return 0
    batch = _follow(meta, header)
    buffers = _field(meta, batch, _BUFFERS)
    if buffers is None or _field(meta, batch, _COMPRESSION) is None:
        return len(body)
    vector, total = _follow(meta, buffers), 0
    (count,) = struct.unpack_from("<I", meta, vector)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", meta, vector + 4 + 16 * number)
        if length == 0:
            continue
        (size,) = struct.unpack_from("<q", body, offset)
        total += length if size == _PLAIN else size
    return total


def _field(meta: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer table stands; None where it has its default."""
    (back,) = struct.unpack_from("<i", meta, table)
    (size,) = struct.unpack_from("<H", meta, table - back)
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", meta, table - back + entry)
    return table + offset if offset else None


def _follow(meta: memoryview, reference: int) -> int:
    (offset,) = struct.unpack_from("<I", meta, reference)
    return reference + int(offset)
