"""Lines of a file, plain or gzip: where rows start, and their bytes from any row on."""

import gzip
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from curation.sources import files
from curation.sources.files import File

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\n\r\x0b\x0c"
_IS_BLANK = np.zeros(256, bool)
_IS_BLANK[list(_BLANK)] = True


def row_starts(file: File) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """int64 byte offsets where rows start, and where the last one ends, chunk by chunk; memory stays at a few chunks or
    the longest line."""
    with files.reading(file):
        stream = LineStream(file)
        while data := stream.lines():
            yield stream.offset - len(data) + rows_in(data)[0], stream.offset


def rows_in(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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


class LineStream:
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
            ends = rows_in(data)[1]
            if len(ends) > rows:
                stop = int(ends[rows - 1]) + 1
                self._ahead = data[stop:] + self._ahead
                self.offset -= len(data) - stop
                data, ends = data[:stop], ends[:rows]
            pieces.append(data)
            rows -= len(ends)
        return b"".join(pieces)


def split(data: bytes) -> list[bytes]:
    """The rows of some lines, without the white space around them."""
    return [line for line in map(bytes.strip, data.split(b"\n")) if line]
