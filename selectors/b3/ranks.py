"""Ranks that B3 keeps: one pair for all rows or one for each data set; counted, or as shares of what a row ranks.

Which ranks suit depends on the data: the paper takes 30 to 130 for retrieval, 70 to 170 for questions over images, and
for classification the first 30 % of the other labels.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Pair = tuple[int, int] | tuple[float, float]
Ranks = Pair | Mapping[int, Pair] | Mapping[str, Pair]

# Ranks of shares are kept for all rows, 8 bytes each while they are searched: above this, 16 GiB.
MOST_SHARED = 1 << 31

_Kind = TypeVar("_Kind", bound=np.signedinteger[Any])


def check_ranks(ranks: Any) -> Ranks:
    """Pairs as tuples of two ints, or of two floats where either is one; a mapping of them as a dict.

    Raises:
        ValueError: a pair is not (first, end) with 0 ≤ first < end, or end is a share above 1.
    """
    if not isinstance(ranks, Mapping):
        return _pair(ranks)
    if not ranks:
        raise ValueError("ranks by data set must name a data set")
    return {name: _pair(pair) for name, pair in ranks.items()}


def _pair(pair: Any) -> Pair:
    numbers = isinstance(pair, tuple | list) and len(pair) == 2
    if not numbers or not all(isinstance(end, int | float | np.integer | np.floating) for end in pair):
        raise ValueError(f"ranks must be (first, end), two numbers, or a mapping from data sets to such, not {pair!r}")
    if all(isinstance(end, int | np.integer) for end in pair):
        first, end = (int(value) for value in pair)
        if not 0 <= first < end:
            raise ValueError(f"ranks must be (first, end) with 0 ≤ first < end, not {pair}")
        return first, end
    least, most = (float(value) for value in pair)
    if not 0 <= least < most <= 1:
        raise ValueError(f"ranks that are shares must be (first, end) with 0 ≤ first < end ≤ 1, not {pair}")
    return least, most


def rank_bounds(ranks: Ranks, size: int, *, datasets: Int64 | None = None, labels: Int64 | None = None) -> Int64:
    """First rank kept of each row, and the one after the last.

    A share is one of the row's data set without the row itself, or without all rows of its label.

    Args:
        ranks: as :func:`check_ranks` returns them.
        size: N.
        datasets: int64[N], the keys of a mapping.
        labels: int64[N], -1 for none.

    Returns:
        int64[N, 2].

    Raises:
        ValueError: a data set has no ranks, or shares of it are too many to keep.
    """
    if datasets is None and isinstance(ranks, Mapping):
        raise ValueError("ranks by data set need datasets")
    names, sets = np.unique(np.zeros(size, np.int64) if datasets is None else datasets, return_inverse=True)
    pairs = []
    for name in names.tolist():
        if isinstance(ranks, Mapping) and name not in ranks:
            raise ValueError(f"ranks give a pair to data sets {', '.join(map(str, ranks))}, but none to {name}")
        pairs.append(ranks[name] if isinstance(ranks, Mapping) else ranks)
    table = np.array(pairs, np.float64).reshape(-1, 2)
    shared = np.array([isinstance(end, float) for _, end in pairs], bool)[sets]
    bounds = table[sets]
    if shared.any():
        bounds[shared] = np.rint(bounds[shared] * _others(sets, labels)[shared, None])
        kept = int(bounds[shared, 1].sum())
        if kept > MOST_SHARED:
            raise ValueError(
                f"ranks that are shares of {size} rows keep {kept} of them, more than {MOST_SHARED}: give whole numbers"
            )
    return bounds.astype(np.int64)


def _others(sets: Int64, labels: Int64 | None) -> Int64:
    # How many rows of its data set each may rank.
    alike = np.ones(len(sets), np.int64)
    if labels is not None:
        known = np.flatnonzero(labels >= 0)
        classes, labelled = np.unique(labels[known], return_inverse=True)
        names = sets[known] * len(classes) + labelled
        _, which, counts = np.unique(names, return_inverse=True, return_counts=True)
        alike[known] = counts[which]
    return np.bincount(sets)[sets] - alike


def rank_widths(bounds: Int64) -> tuple[int, int]:
    """Columns that hold every row's ranks before its first one, and those kept (at least 1)."""
    kept = bounds[:, 1] - bounds[:, 0]
    return int(bounds[:, 0].max(initial=0)), int(kept.max(initial=1))


def cut_ranks(
    ids: npt.NDArray[_Kind], scores: npt.NDArray[np.float32], bounds: Int64, widths: tuple[int, int]
) -> tuple[npt.NDArray[_Kind], npt.NDArray[_Kind], npt.NDArray[np.float32]]:
    """Ranks before the first one kept, those kept, and the scores of these.

    Args:
        ids, scores: [R, q], ranks 0 to q of some rows, q at least the largest end of theirs.
        bounds: int64[R, 2], as :func:`rank_bounds` gives them.
        widths: of the results, as :func:`rank_widths` gives them for all rows.

    Returns:
        int[R, p], int[R, m] and float32[R, m]; -1 (-inf) behind a row's last.
    """
    near, window = (np.full((len(ids), width), -1, ids.dtype) for width in widths)
    kept = np.full(window.shape, -np.inf, np.float32)
    for first, end in np.unique(bounds, axis=0).tolist():
        rows = np.flatnonzero((bounds == (first, end)).all(1))
        near[rows, :first] = ids[rows, :first]
        window[rows, : end - first] = ids[rows, first:end]
        kept[rows, : end - first] = scores[rows, first:end]
    return near, window, kept
