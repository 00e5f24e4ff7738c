"""Permutation of 0..N-1 that is computed, not stored: any slice of it, in O(slice) time and no memory in N.

A Feistel network over a × b ≥ N with a = ⌈√N⌉ and b = ⌈N / a⌉; what falls outside is walked on along its cycle until
it is back inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 3). Fewer than a values
of the domain lie outside, so walks are rare. An epoch over 10^8 candidates so opens at once and keeps nothing.
It is a bijection for every key; that it looks random rests on six rounds of a 64-bit mixer. Tiny domains mix
badly: up to 65,536 candidates the order is numpy's shuffle instead, kept whole.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.random import GOLDEN, MIX_A

ROUNDS = 6
SMALL = 65_536
_A, _B, _32 = np.uint64(GOLDEN), np.uint64(MIX_A), np.uint64(32)
_64 = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Permutation:
    """The order of one epoch.

    Args:
        size: N, 1 to 2^62.
        key: what it is derived from, such as ``(seed, epoch)``; other keys give other orders.
    """

    size: int
    key: tuple[int, ...]
    _order: npt.NDArray[np.int64] | None = field(init=False, repr=False)
    _grid: tuple[int, int] = field(init=False, repr=False)
    _keys: npt.NDArray[np.uint64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 62:
            raise ValueError(f"size must be between 1 and 2^62, not {self.size}")
        seed = np.random.SeedSequence(self.key)
        order = np.random.default_rng(seed).permutation(self.size) if self.size <= SMALL else None
        object.__setattr__(self, "_order", order)
        rows = max(int(np.ceil(np.sqrt(self.size))), 1)
        object.__setattr__(self, "_grid", (rows, -(-self.size // rows)))
        object.__setattr__(self, "_keys", seed.generate_state(ROUNDS, np.uint64))

    def __getitem__(self, positions: slice) -> npt.NDArray[np.int64]:
        """int64[stop - start]: which candidates stand at these positions of the order."""
        start, stop, stride = positions.indices(self.size)
        if stride != 1:
            raise ValueError(f"the step of a slice must be 1, not {stride}")
        if self._order is not None:
            return self._order[start:stop]
        out: npt.NDArray[np.int64] = np.empty(max(stop - start, 0), np.int64)
        _fill(out, start, self.size, *self._grid, self._keys)
        return out

    def position(self, value: int) -> int:
        """Where a candidate stands in the order: the rounds backwards, in O(1) (O(N) up to 65,536 candidates).

        Raises:
            ValueError: it is none of 0..N-1.
        """
        if not 0 <= value < self.size:
            raise ValueError(f"candidate {value} is none of 0 to {self.size - 1}")
        if self._order is not None:
            return int(np.flatnonzero(self._order == value)[0])
        rows, columns = self._grid
        keys = [int(key) for key in self._keys]
        while True:
            row, column = divmod(value, columns)
            for r in range(len(keys) - 2, -1, -2):
                column = (column - _mixed_number(row, keys[r + 1], columns)) % columns
                row = (row - _mixed_number(column, keys[r], rows)) % rows
            value = row * columns + column
            if value < self.size:
                return value


def _mixed_number(value: int, key: int, bound: int) -> int:
    """:func:`_mixed` in Python's integers."""
    value = ((value ^ key) * GOLDEN) & _64
    value = ((value ^ (value >> 32)) * MIX_A) & _64
    return ((value >> 32) * bound) >> 32


@compiled(nogil=True)
def _mixed(value: np.uint64, key: np.uint64, bound: np.uint64) -> np.uint64:
    value = (value ^ key) * _A
    value = (value ^ (value >> _32)) * _B
    return ((value >> _32) * bound) >> _32


@compiled(nogil=True)
def _shuffled(
    row: np.uint64, column: np.uint64, rows: np.uint64, columns: np.uint64, keys: npt.NDArray[np.uint64]
) -> np.uint64:
    for r in range(0, ROUNDS, 2):
        # Modulo without a branch, which would be guessed wrong every other time: below zero wraps to huge.
        row += _mixed(column, keys[r], rows)
        row = min(row, row - rows)
        column += _mixed(row, keys[r + 1], columns)
        column = min(column, column - columns)
    return row * columns + column


@compiled(nogil=True)
def _fill(out: npt.NDArray[np.int64], start: int, size: int, a: int, b: int, keys: npt.NDArray[np.uint64]) -> None:
    rows, columns, end = np.uint64(a), np.uint64(b), np.uint64(size)
    row, column = np.uint64(start) // columns, np.uint64(start) % columns
    done = 0
    while done < len(out):
        # In one row of the grid nothing branches, so that this loop becomes vector instructions.
        stop = min(len(out), done + int(columns - column))
        for i in range(done, stop):
            out[i] = np.int64(_shuffled(row, column + np.uint64(i - done), rows, columns, keys))
        done, row, column = stop, row + np.uint64(1), np.uint64(0)
    for i in range(len(out)):
        value = np.uint64(out[i])
        while value >= end:
            value = _shuffled(value // columns, value % columns, rows, columns, keys)
        out[i] = np.int64(value)
