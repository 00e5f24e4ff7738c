"""Blocks of a source: cut by rows and by bytes, from nothing but what its files say, so that every run cuts alike."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from curation.sources.base import Block, Part


class Cutter:
    """Cuts runs of rows, given in their order, into blocks that may span files.

    Args:
        rows: of a block at most.
        size: bytes of a block at most, as far as the bytes of its runs tell; one row may have more.

    Raises:
        ValueError: one of them is below 1.
    """

    def __init__(self, rows: int, size: int) -> None:
        if rows < 1:
            raise ValueError(f"a block has at least 1 row, not {rows}")
        if size < 1:
            raise ValueError(f"a block has at least 1 byte, not {size}")
        self._most_rows, self._most_bytes = rows, size
        self._blocks: list[Block] = []
        self._parts: list[Part] = []
        self._start = self._rows = self._bytes = 0
        self._file, self._row = -1, 0

    def add(self, file: int, rows: int, size: int = 0, offsets: npt.NDArray[np.int64] | None = None) -> None:
        """The next rows.

        Args:
            file: the number of their file.
            rows: how many they are.
            size: their bytes in memory, about; 0 where nobody knows.
            offsets: int64[rows], the byte where each starts, for formats that seek by it.
        """
        if file != self._file:
            self._file, self._row = file, 0
        done = 0
        while done < rows:
            take = min(self._most_rows - self._rows, rows - done)
            if size:
                fitting = (self._most_bytes - self._bytes) * rows // size
                if fitting < 1 and self._rows:
                    self._close()
                    continue
                take = max(1, min(take, fitting))
            self._extend(take, 0 if offsets is None else int(offsets[done]))
            self._bytes += take * size // rows
            done += take
            if self._rows == self._most_rows:
                self._close()

    def _extend(self, rows: int, offset: int) -> None:
        if self._parts and self._parts[-1].file == self._file:
            self._parts[-1] = replace(self._parts[-1], rows=self._parts[-1].rows + rows)
        else:
            self._parts.append(Part(self._file, self._row, rows, offset))
        self._row += rows
        self._rows += rows

    def _close(self) -> None:
        if self._rows:
            self._blocks.append(Block(len(self._blocks), self._start, self._rows, tuple(self._parts)))
        self._start += self._rows
        self._rows, self._bytes, self._parts = 0, 0, []

    def blocks(self) -> list[Block]:
        """All blocks, when all rows are given."""
        self._close()
        return self._blocks


def block_at(blocks: Sequence[Block], index: int) -> Block:
    """The block that holds a position in range."""
    return blocks[bisect_right(blocks, index, key=lambda block: block.start) - 1]
