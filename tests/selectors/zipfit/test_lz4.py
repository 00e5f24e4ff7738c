"""The port's sizes against the library's, byte for byte, where LZ4's match search has its corners."""

import lz4.frame
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selectors.zipfit.codecs import LZ4_FRAME
from curation.selectors.zipfit.lz4 import BLOCK_LIMIT, Targets


def pack(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)


def check(rows: list[bytes], targets: list[bytes]) -> None:
    own, pairs = Targets(*pack(targets)).sizes(*pack(rows))

    def size(text: bytes) -> int:
        return len(lz4.frame.compress(text)) - LZ4_FRAME if len(text) <= BLOCK_LIMIT else -1

    assert own.tolist() == [size(row) for row in rows]
    assert pairs.tolist() == [[size(row + target) for target in targets] for row in rows]


def bytes_of(seed: int, length: int, alphabet: int) -> bytes:
    return np.random.default_rng(seed).integers(0, alphabet, length, np.uint8).tobytes()


copies = st.builds(
    lambda seed, parts: b"".join(bytes_of(seed, 600, 256)[start : start + length] for start, length in parts),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 590), st.integers(1, 60)), min_size=1, max_size=60),
)
texts = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.builds(bytes_of, st.integers(0, 99), st.integers(1, 3_000), st.sampled_from([1, 2, 4, 16, 64, 256])),
        copies,
    ),
    min_size=1,
    max_size=8,
)


@given(rows=texts, targets=texts)
@settings(deadline=None, max_examples=150)
def test_equals_the_library(rows: list[bytes], targets: list[bytes]) -> None:
    check(rows, targets)


def test_around_the_shortest_lengths() -> None:
    every = [b"a" * n for n in range(1, 40)] + [bytes(range(n)) for n in range(1, 40)]
    check(every, every)


def test_long_runs_and_the_size_limit() -> None:
    noise = bytes_of(1, 70_000, 256)
    check(
        [noise[:n] for n in (3_000, 40_000, 65_500, 65_536, 65_537)] + [b"ab" * 32_000, b"ab" * 40_000],
        [b"x", noise[:36], noise[:37], b"ab" * 700, noise[5_000:6_536]],
    )


def test_lengths_that_overflow_their_byte() -> None:
    noise = bytes_of(2, 2_000, 256)
    around = [n + d for n in (15, 19, 270, 274, 525, 529) for d in (-1, 0, 1)]
    check([noise[:n] + noise[:m] for n in around for m in (300, 600)], [noise[:n] for n in around])
