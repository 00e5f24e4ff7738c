"""Texts as UTF-8 bytes and offsets, in blocks of bounded size, whatever they came in."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ROWS = 8_192
BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class TextBlock:
    """Consecutive texts: text i is ``data[offsets[i]:offsets[i + 1]]``.

    Args:
        data: uint8[M], UTF-8.
        offsets: int64[n + 1], from 0 to M.
        start: the position of the first text in its source.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    start: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64[n], bytes of each text."""
        return np.diff(self.offsets)

    def text(self, row: int | np.integer[Any]) -> bytes:
        """One text's bytes."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def split(self, rows: int) -> Iterator["TextBlock"]:
        """Blocks of at most ``rows`` texts each; views."""
        for low in range(0, len(self), rows):
            high = min(low + rows, len(self))
            first, last = self.offsets[low], self.offsets[high]
            yield TextBlock(self.data[first:last], self.offsets[low : high + 1] - first, self.start + low)


def text_blocks(texts: Iterable[Any]) -> Iterator[TextBlock]:
    """Cut texts into blocks of at most 8,192 rows and, unless one text alone is longer, some 4 MiB.

    An Arrow array of strings gives views of its own buffers; anything else is encoded block by block, so a
    generator is never held in memory.

    Raises:
        ValueError: a text is null or empty; the message has its position.
        TypeError: ``texts`` is one string or a set, or holds anything but strings.
    """
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be a list, an Arrow array or another iterable of strings, not one string")
    if isinstance(texts, set | frozenset):
        raise TypeError("texts must have an order, which a set has not: pass sorted(texts), or a list")
    if isinstance(texts, pa.ChunkedArray):
        chunks: Iterable[Any] = texts.chunks
    elif isinstance(texts, pa.Array):
        chunks = [texts]
    elif isinstance(texts, pa.Table | pa.RecordBatch):
        raise TypeError("texts must be a column of strings, not a table: pass table['text']")
    else:
        chunks = _encoded(iter(texts))
    start = 0
    for chunk in chunks:
        yield from _cut(chunk, start)
        start += len(chunk)


def _encoded(texts: Iterator[Any]) -> Iterator[Any]:
    start = 0
    while batch := list(islice(texts, 1_024)):
        # Arrow would take bytes for strings.
        if not all(issubclass(kind, str | None) for kind in set(map(type, batch))):
            raise _bad_value(batch, start)
        try:
            yield pa.array(batch, pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise _bad_value(batch, start) from error
        start += len(batch)


def _bad_value(batch: list[Any], start: int) -> Exception:
    for row, value in enumerate(batch, start):
        if value is not None and not isinstance(value, str):
            return TypeError(f"text {row} is {type(value).__name__}, not a string")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            return ValueError(f"text {row} cannot be written as UTF-8: {error.reason}")
    return TypeError(f"texts {start} to {start + len(batch) - 1} are not strings")


def _cut(chunk: Any, start: int) -> Iterator[TextBlock]:
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if pa.types.is_string_view(chunk.type):
        chunk = chunk.cast(pa.large_string())
    if pa.types.is_null(chunk.type) and len(chunk):
        raise ValueError(f"text {start} is null: remove such rows first")
    if len(chunk) == 0:
        return
    if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
        raise TypeError(f"texts must be strings, not an Arrow array of {chunk.type}")
    if chunk.null_count:
        row = start + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"text {row} is null: remove such rows first")
    _, offset_buffer, data_buffer = chunk.buffers()
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    offsets = np.frombuffer(offset_buffer, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
    lengths = np.diff(offsets)
    if not lengths.all():
        row = start + int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"text {row} is empty: it has no compressed size to compare, remove such rows first")
    data = np.frombuffer(data_buffer, np.uint8)
    low = 0
    while low < len(chunk):
        high = int(np.searchsorted(offsets, offsets[low] + BYTES, "right")) - 1
        high = min(max(high, low + 1), low + ROWS, len(chunk))
        yield TextBlock(data[offsets[low] : offsets[high]], offsets[low : high + 1] - offsets[low], start + low)
        low = high


def joined(blocks: list[TextBlock]) -> TextBlock:
    """Blocks of one source, in order, as one."""
    lengths = np.concatenate([block.lengths for block in blocks])
    return TextBlock(
        np.concatenate([block.data for block in blocks]), np.append(0, np.cumsum(lengths)).astype(np.int64)
    )
