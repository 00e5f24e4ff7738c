"""The compiled loops of :mod:`curation.selectors.infobatch.rule`: O(N), one thread, no state.

One thread, so that a process may fork after them; without the GIL, so that others run meanwhile. Random numbers
are a function of (key, position), so an outcome depends on nothing else.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.pruning import BAND, DROPPED, KEPT
from curation.gpu.random.cpu import number, uniform

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.signedinteger[Any]]

_LOW32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)


@compiled(nogil=True)
def finite_mean(scores: Floats) -> float:
    """Mean of the finite scores in float64, NaN where there are none."""
    total, count = 0.0, 0
    for score in scores:
        if np.isfinite(score):
            total += score
            count += 1
    return total / count if count else np.nan


@compiled(nogil=True, inline="always")
def _band(score: float, cuts: Floats) -> int:
    """The band of a score; ``len(cuts)`` where it lies above all or is unknown."""
    if not np.isfinite(score):
        return len(cuts)
    for band in range(len(cuts)):
        if score < cuts[band]:
            return band
    return len(cuts)


@compiled(nogil=True)
def band_sizes(scores: Floats, cuts: Floats) -> npt.NDArray[np.int64]:
    """int64[bands]: how many scores each band holds."""
    sizes = np.zeros(len(cuts) + 1, np.int64)
    for score in scores:
        sizes[_band(score, cuts)] += 1
    return sizes[: len(cuts)]


@compiled(nogil=True)
def draw_by_coins(scores: Floats, cuts: Floats, ratios: npt.NDArray[np.float64], key: np.uint64) -> Codes:
    """uint8[N]: codes by a coin for each example of a band, dropped with its ``ratios``' probability."""
    codes = np.empty(len(scores), np.uint8)
    for i in range(len(scores)):
        band = _band(scores[i], cuts)
        if band == len(cuts):
            codes[i] = KEPT
        else:
            codes[i] = DROPPED if uniform(number(key, i)) < ratios[band] else BAND + band
    return codes


@compiled(nogil=True)
def draw_exactly(
    scores: Floats,
    cuts: Floats,
    sizes: npt.NDArray[np.int64],
    dropped: npt.NDArray[np.int64],
    key: np.uint64,
) -> Codes:
    """Knuth's selection sampling (Algorithm S), one run in each band: uniform over subsets of that size."""
    codes = np.empty(len(scores), np.uint8)
    remaining, to_drop = sizes.copy(), dropped.copy()
    for i in range(len(scores)):
        band = _band(scores[i], cuts)
        if band == len(cuts):
            codes[i] = KEPT
            continue
        if uniform(number(key, i)) * remaining[band] < to_drop[band]:
            codes[i] = DROPPED
            to_drop[band] -= 1
        else:
            codes[i] = BAND + band
        remaining[band] -= 1
    return codes


@compiled(nogil=True)
def shuffle_into(codes: Codes, key: np.uint64, order: Positions, buckets: int) -> None:
    """Fill ``order`` with the kept positions in random order: through ``buckets`` (a power of two), each shuffled."""
    mask = np.uint64(buckets - 1)
    ends = np.zeros(buckets + 1, np.int64)
    for i in range(len(codes)):
        if codes[i] != DROPPED:
            ends[np.int64(number(key, i) & mask) + 1] += 1
    ends = np.cumsum(ends)
    heads = ends[:-1].copy()
    for i in range(len(codes)):
        if codes[i] != DROPPED:
            bucket = np.int64(number(key, i) & mask)
            order[heads[bucket]] = i
            heads[bucket] += 1
    counter = len(codes)
    for part in range(buckets):
        start, stop = ends[part], ends[part + 1]
        for last in range(stop - 1, start, -1):
            span = np.uint64(last - start + 1)
            # Lemire's draw below ``span``: the rejection makes it exact.
            product = (number(key, counter) >> _U32) * span
            counter += 1
            if product & _LOW32 < span:
                floor = ((_LOW32 - span) + np.uint64(1)) % span
                while product & _LOW32 < floor:
                    product = (number(key, counter) >> _U32) * span
                    counter += 1
            other = start + np.int64(product >> _U32)
            order[last], order[other] = order[other], order[last]
