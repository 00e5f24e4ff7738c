"""Flatbuffers of Arrow's messages, read by hand for what pyarrow does not ask before it acts.

Fields are numbered as Arrow's ``format/Message.fbs`` and ``format/Schema.fbs`` have them. A read outside of the buffer
raises ``struct.error``.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

MAX_FIELDS = 64
"""Columns of a schema, with the columns inside of them; and entries of one table of metadata."""
_SCHEMA, _RECORD_BATCH = 1, 3
_HEADER_TYPE, _HEADER, _MESSAGE_METADATA = 1, 2, 4
_ENDIANNESS, _SCHEMA_FIELDS, _SCHEMA_METADATA = 0, 1, 2
_NAME, _TYPE, _CHILDREN, _FIELD_METADATA = 0, 2, 5, 6
_KEY, _VALUE = 0, 1
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_AS_IT_IS = -1
# Int, FloatingPoint, Binary, Utf8, Bool, List, FixedSizeList, LargeBinary, LargeUtf8, LargeList: types without strings.
_PLAIN_TYPES = frozenset({2, 3, 4, 5, 6, 12, 16, 19, 20, 21})


class Layout(NamedTuple):
    """What the message of a record batch declares: its rows, and where its buffers lie in its body.

    ``buffers``: (offset, length) of those that are compressed. ``sent``: bytes of all buffers. ``end``: where the last
    one ends.
    """

    rows: int
    sent: int
    end: int
    buffers: tuple[tuple[int, int], ...]

    def expanded(self, body: memoryview, max_bytes: int) -> int:
        """What the compressed buffers of a body expand to, added up until it passes ``max_bytes``.

        Raises:
            ValueError: a size is negative, or buffers lie outside of the body or on each other, so that they stand for
                more than was sent.
        """
        if self.end > len(body) or self.sent > len(body):
            raise ValueError(f"buffers lie on each other or outside of the body of {len(body)} bytes")
        total = 0
        for offset, length in self.buffers:
            (size,) = struct.unpack_from("<q", body, offset)
            if size < _AS_IT_IS:
                raise ValueError(f"a buffer declares {size} bytes")
            total += length if size == _AS_IT_IS else size
            if total > max_bytes:
                break
        return total


@lru_cache(maxsize=1024)
def layout_of(meta: bytes) -> Layout:
    """The layout that a message declares; kept, because steps of the same length send the same.

    Raises:
        ValueError: it is no record batch, or declares something negative.
    """
    view = memoryview(meta)
    root = follow(view, 0)
    kind, header = find_field(view, root, _HEADER_TYPE), find_field(view, root, _HEADER)
    if kind is None or header is None or _byte(view, kind) != _RECORD_BATCH:
        raise ValueError("a message after the first is no record batch")
    batch = follow(view, header)
    at = find_field(view, batch, _ROWS)
    rows = 0 if at is None else struct.unpack_from("<q", view, at)[0]
    compressed = find_field(view, batch, _COMPRESSION) is not None
    at = find_field(view, batch, _BUFFERS)
    buffers: list[tuple[int, int]] = []
    if at is not None:
        vector = follow(view, at)
        (count,) = struct.unpack_from("<I", view, vector)
        flat = struct.unpack_from(f"<{2 * min(count, len(meta))}q", view, vector + 4)
        buffers = [buffer for buffer in zip(flat[::2], flat[1::2], strict=True) if buffer[1]]
    if rows < 0 or any(offset < 0 or length < 0 for offset, length in buffers):
        raise ValueError("a batch declares a number of rows, an offset or a length that is negative")
    sent, end = sum(length for _, length in buffers), max((sum(buffer) for buffer in buffers), default=0)
    return Layout(rows, sent, end, tuple(buffers) if compressed else ())


def is_big_endian(meta: bytes) -> bool:
    """Whether a schema that pyarrow has read says that numbers begin with their highest byte."""
    view = memoryview(meta)
    header = find_field(view, follow(view, 0), _HEADER)
    at = None if header is None else find_field(view, follow(view, header), _ENDIANNESS)
    return at is not None and struct.unpack_from("<h", view, at)[0] != 0


def check_tree(meta: memoryview) -> None:
    """Refuse a message in which many fields or entries stand in one place, so that it unfolds to more than was sent.

    pyarrow copies each name and each entry of metadata as often as it is referred to: 240 KB become 400 MB.

    Raises:
        ValueError: it does, has too many fields, metadata outside of the schema, or is neither schema nor batch.
    """
    root = follow(meta, 0)
    kind, header = find_field(meta, root, _HEADER_TYPE), find_field(meta, root, _HEADER)
    if kind is None or header is None or find_field(meta, root, _MESSAGE_METADATA) is not None:
        raise ValueError("a message of this length has no header, or metadata of its own")
    if _byte(meta, kind) == _SCHEMA:
        _Tree(meta).schema(follow(meta, header))
    elif _byte(meta, kind) != _RECORD_BATCH:
        raise ValueError("it has a message that is neither schema nor record batch")


def metadata_of(meta: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """The keys of the metadata of a schema that pyarrow has read, and where their values start and end."""
    header = find_field(meta, follow(meta, 0), _HEADER)
    at = None if header is None else find_field(meta, follow(meta, header), _SCHEMA_METADATA)
    if at is None:
        return
    vector = follow(meta, at)
    for entry in range(struct.unpack_from("<I", meta, vector)[0]):
        table = follow(meta, vector + 4 + 4 * entry)
        (key, stop), value = _text(meta, table, _KEY), _text(meta, table, _VALUE)
        yield bytes(meta[key:stop]), *value


def _text(meta: memoryview, table: int, number: int) -> tuple[int, int]:
    at = find_field(meta, table, number)
    if at is None:
        return 0, 0
    start = follow(meta, at)
    return start + 4, start + 4 + int(struct.unpack_from("<I", meta, start)[0])


class _Tree:
    """A schema's strings, counted as often as they are referred to: no more than the message has bytes."""

    def __init__(self, meta: memoryview) -> None:
        self._meta = meta
        self._bytes_left = len(meta)
        self._fields_left = MAX_FIELDS

    def schema(self, table: int) -> None:
        for field in self._tables(table, _SCHEMA_FIELDS):
            self._field(field)
        self._metadata(table, _SCHEMA_METADATA)

    def _field(self, table: int) -> None:
        self._fields_left -= 1
        kind = find_field(self._meta, table, _TYPE)
        if self._fields_left < 0:
            raise ValueError(f"it has more than {MAX_FIELDS} columns")
        if kind is None or _byte(self._meta, kind) not in _PLAIN_TYPES:
            raise ValueError("it has a column of a type that is not taken: send numbers, strings, binary, or lists")
        self._string(table, _NAME)
        self._metadata(table, _FIELD_METADATA)
        for child in self._tables(table, _CHILDREN):
            self._field(child)

    def _metadata(self, table: int, number: int) -> None:
        for entry in self._tables(table, number):
            self._string(entry, _KEY)
            self._string(entry, _VALUE)

    def _tables(self, table: int, number: int) -> list[int]:
        at = find_field(self._meta, table, number)
        if at is None:
            return []
        vector = follow(self._meta, at)
        (count,) = struct.unpack_from("<I", self._meta, vector)
        if count > MAX_FIELDS:
            raise ValueError(f"a list in its schema has {count} entries, and {MAX_FIELDS} is the limit")
        return [follow(self._meta, vector + 4 + 4 * entry) for entry in range(count)]

    def _string(self, table: int, number: int) -> None:
        at = find_field(self._meta, table, number)
        if at is not None:
            self._bytes_left -= struct.unpack_from("<I", self._meta, follow(self._meta, at))[0]
            if self._bytes_left < 0:
                raise ValueError("the strings of its schema overlap")


def find_field(meta: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer table stands; None where it has its default."""
    (back,) = struct.unpack_from("<i", meta, table)
    (size,) = struct.unpack_from("<H", meta, table - back)
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", meta, table - back + entry)
    return table + offset if offset else None


def _byte(meta: memoryview, at: int) -> int:
    return int(struct.unpack_from("<B", meta, at)[0])


def follow(meta: memoryview, reference: int) -> int:
    (offset,) = struct.unpack_from("<I", meta, reference)
    return reference + int(offset)
