"""Compressed sizes of texts alone and of texts followed by targets, codec by codec.

Every size is what the codec's own Python call gives for the same bytes:

======  ==================================================================  =========================
codec   size                                                                level (default)
======  ==================================================================  =========================
lz4     ``len(lz4.frame.compress(data, compression_level=level))``          -100 to 16 (0)
gzip    ``len(gzip.compress(data, level))``                                 1 to 9 (1)
zstd    ``len(zstandard.ZstdCompressor(level=level).compress(data))``       -100 to 22, not 0 (1)
======  ==================================================================  =========================

LZ4 looks back 64 KiB and gzip 32 KiB: what a longer text holds before that has no say in a target's size.
LZ4's fast levels and gzip have a compiled path without the GIL; it is compared with the Python call once in
each process, and the Python call serves where the two differ (another version of the C library).
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import lz4.frame
import numpy as np
import numpy.typing as npt
import zstandard

from curation.selectors.zipfit import deflate
from curation.selectors.zipfit import lz4 as lz4_port
from curation.selectors.zipfit.texts import TextBlock

Sizes = npt.NDArray[np.int64]
LZ4_FRAME = 23


class Sizer(Protocol):
    """Knows the targets, and sizes rows against them; safe to call from several threads."""

    def __call__(self, rows: TextBlock) -> tuple[Sizes, Sizes]:
        """int64[n], the rows' sizes alone; and int64[n, T], those of each row followed by each target."""
        ...


@dataclass(frozen=True)
class Codec:
    """A compressor and how ZIP-FIT measures with it.

    Args:
        levels: what ``level`` may be.
        default: the level where none is given.
        size: bytes of one compressed text at a level.
        sizer: for the targets and a level.
    """

    levels: tuple[int, ...]
    default: int
    size: Callable[[bytes, int], int]
    sizer: Callable[[TextBlock, int], Sizer]


def lz4_size(data: bytes, level: int) -> int:
    return len(lz4.frame.compress(data, compression_level=level))


def gzip_size(data: bytes, level: int) -> int:
    return len(gzip.compress(data, level))


def zstd_size(data: bytes, level: int) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(data))


def library_sizer(size: Callable[[bytes], int], targets: TextBlock) -> Sizer:
    """The codec's Python call for every pair."""
    texts = [targets.text(j) for j in range(len(targets))]

    def sizes(rows: TextBlock) -> tuple[Sizes, Sizes]:
        own = np.empty(len(rows), np.int64)
        pairs = np.empty((len(rows), len(texts)), np.int64)
        for i in range(len(rows)):
            row = rows.text(i)
            own[i] = size(row)
            pairs[i] = [size(row + text) for text in texts]
        return own, pairs

    return sizes


def _lz4_sizer(targets: TextBlock, level: int) -> Sizer:
    if not 0 <= level <= 2 or not _lz4_port_agrees():
        return library_sizer(lambda data: lz4_size(data, level), targets)
    prepared = lz4_port.Targets(targets.data, targets.offsets)

    def sizes(rows: TextBlock) -> tuple[Sizes, Sizes]:
        blocks, pair_blocks = prepared.sizes(rows.data, rows.offsets)
        own, pairs = blocks.astype(np.int64) + LZ4_FRAME, pair_blocks.astype(np.int64) + LZ4_FRAME
        for i in np.flatnonzero(blocks < 0):
            own[i] = lz4_size(rows.text(i), level)
        for i, j in np.argwhere(pair_blocks < 0):
            pairs[i, j] = lz4_size(rows.text(i) + targets.text(j), level)
        return own, pairs

    return sizes


def _gzip_sizer(targets: TextBlock, level: int) -> Sizer:
    if not _deflate_agrees(level):
        return library_sizer(lambda data: gzip_size(data, level), targets)
    return lambda rows: deflate.sizes(rows, targets, level)


def _zstd_sizer(targets: TextBlock, level: int) -> Sizer:
    def sizes(rows: TextBlock) -> tuple[Sizes, Sizes]:
        compress = zstandard.ZstdCompressor(level=level).compress
        return library_sizer(lambda data: len(compress(data)), targets)(rows)

    return sizes


def _probes() -> tuple[TextBlock, TextBlock]:
    """A few rows and targets, from one byte to 20 kB, that compress well, hardly, and not at all."""
    random = np.random.default_rng(0)
    words = [random.integers(97, 123, n, np.uint8) for n in (3, 4, 5, 7, 9, 14, 25)]

    def text(length: int) -> npt.NDArray[np.uint8]:
        parts = [words[w] for w in random.integers(0, len(words), length // 3 + 1)]
        return np.concatenate(parts)[:length]

    rows = [random.integers(0, 256, n, np.uint8) for n in (1, 11, 300)] + [text(n) for n in (5, 13, 400, 20_000)]
    targets = [random.integers(0, 256, n, np.uint8) for n in (1, 300)] + [text(n) for n in (8, 70, 900)]

    def block(texts: list[npt.NDArray[np.uint8]]) -> TextBlock:
        return TextBlock(np.concatenate(texts), np.cumsum([0, *map(len, texts)], dtype=np.int64))

    return block(rows), block(targets)


def _agree(fast: tuple[Sizes, Sizes], library: tuple[Sizes, Sizes]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(fast, library, strict=True))


@cache
def _lz4_port_agrees() -> bool:
    rows, targets = _probes()
    own, pairs = lz4_port.Targets(targets.data, targets.offsets).sizes(rows.data, rows.offsets)
    return _agree(
        (own + np.int64(LZ4_FRAME), pairs + np.int64(LZ4_FRAME)),
        library_sizer(lambda data: lz4_size(data, 0), targets)(rows),
    )


@cache
def _deflate_agrees(level: int) -> bool:
    rows, targets = _probes()
    return deflate.available() and _agree(
        deflate.sizes(rows, targets, level),
        library_sizer(lambda data: gzip_size(data, level), targets)(rows),
    )


CODECS: Mapping[str, Codec] = {
    "lz4": Codec(tuple(range(-100, 17)), 0, lz4_size, _lz4_sizer),
    "gzip": Codec(tuple(range(1, 10)), 1, gzip_size, _gzip_sizer),
    "zstd": Codec((*range(-100, 0), *range(1, 23)), 1, zstd_size, _zstd_sizer),
}
