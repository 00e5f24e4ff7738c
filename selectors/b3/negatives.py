"""Negatives of B3++, explicit ones: drawn from what the members of a row's community rank in their windows.

A community weighs its candidates once, from its K·m window ids and K·p near ids: O(N·(m + p)·log) time for all, in
compiled code and in parallel. Whether a row may have a candidate is asked only where it would be drawn, of some
h·(1 + log(K·m/h)) candidates a row, so that limits of similarity cost as many inner products and no memory. A draw is
a function of (seed, epoch, row, candidate) alone, so it does not depend on the number of threads.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.knn.matrix import decode_row, score_one
from curation.gpu.random import GOLDEN
from curation.gpu.random.cpu import mix, uniform
from curation.gpu.threads import by_rows
from curation.selectors.b3.limits import SimilarityLimits

Int64 = npt.NDArray[np.int64]

_SILVER = 0xD1B54A32D192ED03


def hard_negatives(
    clusters: Int64,
    window: npt.NDArray[np.integer[npt.NBitBase]],
    near: npt.NDArray[np.integer[npt.NBitBase]],
    *,
    count: int,
    seed: int = 0,
    epoch: int = 0,
    apart: Int64 | None = None,
    labels: Int64 | None = None,
    limits: SimilarityLimits | None = None,
) -> Int64:
    """``count`` negatives for each row, without replacement (B3++; section 3 of arXiv 2505.11293).

    Candidate j weighs, for all rows of community C, ``max(0, |{i in C: j in window(i)}| - 2·|{i in C: j in
    near(i)}|)``; the draws follow those weights. A row is never given a member of C, one of its own ``near``, one
    that ``apart`` or ``labels`` keep from it, or one beyond its own limit; the others keep their proportions.

    Args:
        clusters: int64[N], community of each row.
        window: int[N, m], -1 for none.
        near: int[N, p], the ranks before the window, whose rows are likely false negatives.
        count: h, at least 1.
        seed, epoch: of the draws.
        apart: int64[c, N], ids of one space, such as those of queries' and of positives' texts: a row is never given
            a candidate that has an id in common with it, in whichever columns. -1 for none.
        labels: int64[N], classes: a row is never given a candidate of its own. -1 for none.
        limits: of similarity, of the N rows.

    Returns:
        int64[N, h], in the order drawn; -1 where fewer candidates are allowed.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    order = np.argsort(clusters, kind="stable")
    offsets = np.append(np.flatnonzero(np.diff(clusters[order], prepend=np.int64(-1))), len(order))
    out = np.full((len(clusters), count), -1, np.int64)
    key = np.random.default_rng((seed, epoch, 3)).integers(0, 2**63, dtype=np.uint64)
    apart = np.empty((0, len(clusters)), np.int64) if apart is None else apart
    labels = np.empty(0, np.int64) if labels is None else labels
    by_rows(
        _draw, len(offsets) - 1, order, offsets.astype(np.int64), clusters, window, near, apart, labels,
        *_compiled(limits), key, out,
    )  # fmt: skip
    return out


def _compiled(limits: SimilarityLimits | None) -> tuple[Any, ...]:
    # Without limits, of the types of float32 embeddings: each set of types is compiled anew.
    if limits is None:
        rows, codes = np.empty((0, 0), np.float32), np.empty(0, np.float32)
        return rows, codes, rows, codes, np.empty(0, np.float32), False
    return *limits.queries.coded, *limits.positives.coded, limits.highest, limits.metric == "l2"


@compiled(nogil=True)
def _pair_uniform(key, row, candidate):  # type: ignore[no-untyped-def]
    # The mixer over the pair: one number in (0, 1] each. Another odd factor keeps (1, 0) and (0, 1) apart.
    bits = mix(mix(key + np.uint64(row) * np.uint64(GOLDEN)) + np.uint64(candidate) * np.uint64(_SILVER))
    return uniform(bits) + 2.0**-53


@compiled(nogil=True)
def _draw(  # type: ignore[no-untyped-def]
    begin, end, order, offsets, clusters, window, near, apart, labels,
    queries, query_codes, positives, positive_codes, highest, l2, key, out,
):  # fmt: skip
    query = np.empty(queries.shape[1], np.float32)
    positive = np.empty(positives.shape[1], np.float32)
    for cluster in range(begin, end):
        members = order[offsets[cluster] : offsets[cluster + 1]]
        candidates, weights = _weigh(members, clusters, window, near)
        for row in members:
            if len(highest):
                decode_row(queries[row], query_codes, query)
            # Exponential races: the h smallest -log(u)/w are a draw without replacement in proportion to w.
            best = np.full(out.shape[1], np.inf)
            for i in range(len(candidates)):
                candidate = candidates[i]
                time = -np.log(_pair_uniform(key, row, candidate)) / weights[i]
                if time >= best[-1] or not _allowed(row, candidate, near, apart, labels):
                    continue
                if len(highest):
                    decode_row(positives[candidate], positive_codes, positive)
                    if np.float32(score_one(query, positive, l2)) > highest[row]:
                        continue
                rank = len(best) - 1
                while rank > 0 and best[rank - 1] > time:
                    best[rank] = best[rank - 1]
                    out[row, rank] = out[row, rank - 1]
                    rank -= 1
                best[rank] = time
                out[row, rank] = candidate


@compiled(nogil=True)
def _weigh(members, clusters, window, near):  # type: ignore[no-untyped-def]
    # The candidates of a community, rising, and their weights.
    windows = np.empty(len(members) * window.shape[1], np.int64)
    nearest = np.empty(len(members) * near.shape[1], np.int64)
    for i in range(len(members)):
        row = members[i]
        for rank in range(window.shape[1]):
            windows[i * window.shape[1] + rank] = window[row, rank]
        for rank in range(near.shape[1]):
            nearest[i * near.shape[1] + rank] = near[row, rank]
    windows.sort()
    nearest.sort()
    candidates = np.empty(len(windows), np.int64)
    weights = np.empty(len(windows), np.float64)
    size, start, low = 0, 0, 0
    while start < len(windows):
        stop = start
        while stop < len(windows) and windows[stop] == windows[start]:
            stop += 1
        candidate = windows[start]
        if candidate >= 0 and clusters[candidate] != clusters[members[0]]:
            while low < len(nearest) and nearest[low] < candidate:
                low += 1
            high = low
            while high < len(nearest) and nearest[high] == candidate:
                high += 1
            weight = stop - start - 2 * (high - low)
            if weight > 0:
                candidates[size] = candidate
                weights[size] = weight
                size += 1
        start = stop
    return candidates[:size], weights[:size]


@compiled(nogil=True)
def _allowed(row, candidate, near, apart, labels):  # type: ignore[no-untyped-def]
    for rank in range(near.shape[1]):
        if near[row, rank] == candidate:
            return False
    for mine in range(len(apart)):
        if apart[mine, row] >= 0:
            for theirs in range(len(apart)):
                if apart[mine, row] == apart[theirs, candidate]:
                    return False
    return len(labels) == 0 or labels[row] < 0 or labels[row] != labels[candidate]
