"""Which examples of an epoch stay, at what weight, and in which order: the mathematics of InfoBatch.

A code of one byte stands for an example's fate in an epoch: :data:`DROPPED`, :data:`KEPT` at weight 1, or
``BAND + b``: kept although its score lies in band b, at that band's weight. Every function here is pure;
the kernels are compiled, run on one thread (so that a process may fork after them) and are O(N).
"""

from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

DROPPED, KEPT, BAND = 0, 1, 2

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_LOW32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)
_BUCKET = 1 << 15


@dataclass(frozen=True)
class Fates:
    """An epoch's decision: ``codes`` uint8[N], and ``weights`` float32[2 + bands], the weight of each code."""

    codes: Codes
    weights: Floats


def thresholds(scores: Floats, quantiles: tuple[float, ...] | None) -> npt.NDArray[np.float32]:
    """float32[bands], rising: the upper ends of the bands that are pruned.

    The mean of the known scores, or their quantiles. Scores that are not finite are unknown: they take no
    part. Empty where nothing is known.
    """
    if quantiles is None:
        mean = finite_mean(scores)
        return np.empty(0, np.float32) if np.isnan(mean) else np.array([mean], np.float32)
    known = scores[np.isfinite(scores)]
    if len(known) == 0:
        return np.empty(0, np.float32)
    return np.quantile(known, quantiles).astype(np.float32)


def decide(
    scores: Floats,
    cuts: npt.NDArray[np.float32],
    ratios: tuple[float, ...],
    *,
    exact: bool,
    seed: tuple[int, ...],
) -> Fates:
    """Draw the fates of all examples.

    Band b holds the examples with ``cuts[b - 1] <= score < cuts[b]``. With ``exact`` false each is dropped
    by a coin of its own with probability ``ratios[b]``, and a survivor weighs 1 / (1 - ratio). With
    ``exact`` true precisely ⌊ratio · n⌋ of its n are dropped, uniformly, and a survivor weighs n / n_kept.
    Either way E[Σ w_i x_i] = Σ x_i for any x.
    """
    weights = np.ones(BAND + len(ratios), np.float32)
    weights[DROPPED] = 0
    key = derive_key(seed)
    drop = np.asarray(ratios[: len(cuts)], np.float64)
    if not exact:
        weights[BAND:] = 1 / (1 - np.asarray(ratios))
        return Fates(_coins(scores, cuts, drop, key), weights)
    sizes = _band_sizes(scores, cuts)
    dropped = np.floor(drop * sizes).astype(np.int64)
    weights[BAND : BAND + len(cuts)] = sizes / np.maximum(sizes - dropped, 1)
    return Fates(_counts(scores, cuts, sizes, dropped, key), weights)


def expected_share(scores: Floats, cuts: npt.NDArray[np.float32], ratios: tuple[float, ...]) -> float:
    """The share of examples that :func:`decide` keeps, on average."""
    sizes = _band_sizes(scores, cuts)
    return 1 - float(sizes @ np.asarray(ratios[: len(cuts)], np.float64)) / len(scores)


def shuffled_kept(codes: Codes, seed: tuple[int, ...]) -> npt.NDArray[np.signedinteger]:
    """A uniformly random order of the positions whose code is not :data:`DROPPED`.

    int32 where positions fit, else int64. Rao and Sandelius' shuffle: each position goes to a random bucket
    that fits the processor's cache, and each bucket is shuffled, so that 10^8 positions take a second or two.
    """
    kept = int(np.count_nonzero(codes))
    order = np.empty(kept, np.int32 if len(codes) < 2**31 else np.int64)
    buckets = 1
    while kept > buckets * _BUCKET:
        buckets *= 2
    _scatter(codes, derive_key(seed), order, buckets)
    return order


def derive_key(seed: tuple[int, ...]) -> np.uint64:
    """uint64 from a tuple of numbers that are not negative; different tuples give unrelated keys."""
    return np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]


def check_bands(quantiles: tuple[float, ...] | None, ratios: tuple[float, ...]) -> None:
    """Raise ``ValueError`` unless ratios lie in [0, 1) and there is one for each (rising) quantile."""
    if any(not 0 <= ratio < 1 for ratio in ratios):
        raise ValueError(f"prune_ratio must lie in [0, 1), not {ratios}: at 1 no weight makes up for the loss")
    wanted = 1 if quantiles is None else len(quantiles)
    if len(ratios) != wanted:
        raise ValueError(f"prune_ratio needs one ratio for each of {wanted} bands, not {len(ratios)}")
    if quantiles is not None and (
        any(not 0 < q <= 1 for q in quantiles) or any(a >= b for a, b in pairwise(quantiles))
    ):
        raise ValueError(f"quantiles must rise within (0, 1], not {quantiles}")
    if len(ratios) > 250:
        raise ValueError(f"at most 250 bands, not {len(ratios)}")


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def finite_mean(scores: Floats) -> float:
    """Mean of the finite scores in float64, NaN where there are none."""
    total, count = 0.0, 0
    for score in scores:
        if np.isfinite(score):
            total += score
            count += 1
    return total / count if count else np.nan


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _random(key: np.uint64, counter: int) -> np.uint64:
    """Number ``counter`` of the SplitMix64 stream that starts at ``key``."""
    z = key + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _uniform(bits: np.uint64) -> float:
    return float(bits >> np.uint64(11)) * 2.0**-53


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _band(score: float, cuts: npt.NDArray[np.float32]) -> int:
    """The band of a score; ``len(cuts)`` where it lies above all or is unknown."""
    if not np.isfinite(score):
        return len(cuts)
    for band in range(len(cuts)):
        if score < cuts[band]:
            return band
    return len(cuts)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _band_sizes(scores: Floats, cuts: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    sizes = np.zeros(len(cuts) + 1, np.int64)
    for score in scores:
        sizes[_band(score, cuts)] += 1
    return sizes[: len(cuts)]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _coins(scores: Floats, cuts: npt.NDArray[np.float32], ratios: npt.NDArray[np.float64], key: np.uint64) -> Codes:
    codes = np.empty(len(scores), np.uint8)
    for i in range(len(scores)):
        band = _band(scores[i], cuts)
        if band == len(cuts):
            codes[i] = KEPT
        else:
            codes[i] = DROPPED if _uniform(_random(key, i)) < ratios[band] else BAND + band
    return codes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _counts(
    scores: Floats,
    cuts: npt.NDArray[np.float32],
    sizes: npt.NDArray[np.int64],
    dropped: npt.NDArray[np.int64],
    key: np.uint64,
) -> Codes:
    """Knuth's selection sampling (Algorithm S), one run in each band: uniform over subsets of that size."""
    codes = np.empty(len(scores), np.uint8)
    left, wanted = sizes.copy(), dropped.copy()
    for i in range(len(scores)):
        band = _band(scores[i], cuts)
        if band == len(cuts):
            codes[i] = KEPT
            continue
        if _uniform(_random(key, i)) * left[band] < wanted[band]:
            codes[i] = DROPPED
            wanted[band] -= 1
        else:
            codes[i] = BAND + band
        left[band] -= 1
    return codes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _scatter(codes: Codes, key: np.uint64, order: npt.NDArray[np.signedinteger], buckets: int) -> None:
    mask = np.uint64(buckets - 1)
    ends = np.zeros(buckets + 1, np.int64)
    for i in range(len(codes)):
        if codes[i] != DROPPED:
            ends[np.int64(_random(key, i) & mask) + 1] += 1
    ends = np.cumsum(ends)
    place = ends[:-1].copy()
    for i in range(len(codes)):
        if codes[i] != DROPPED:
            bucket = np.int64(_random(key, i) & mask)
            order[place[bucket]] = i
            place[bucket] += 1
    counter = len(codes)
    for bucket in range(buckets):
        start, stop = ends[bucket], ends[bucket + 1]
        for last in range(stop - 1, start, -1):
            span = np.uint64(last - start + 1)
            # Lemire's draw below ``span``: the rejection makes it exact.
            product = (_random(key, counter) >> _U32) * span
            counter += 1
            if product & _LOW32 < span:
                floor = ((_LOW32 - span) + np.uint64(1)) % span
                while product & _LOW32 < floor:
                    product = (_random(key, counter) >> _U32) * span
                    counter += 1
            other = start + np.int64(product >> _U32)
            order[last], order[other] = order[other], order[last]
