"""B3++: explicit hard negatives, drawn from what the members of a row's community rank in their windows.

The arithmetic of one community needs its K·m window ids and K·p near ids, sorted once: O(N·(m + p)·log) time
for all, in compiled code and in parallel; a draw is a function of (seed, epoch, row, candidate) alone, so it
does not depend on the number of threads.
"""

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.random import GOLDEN
from curation.gpu.random.cpu import mix, uniform
from curation.gpu.threads import by_rows

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
) -> Int64:
    """``count`` negatives for each row, without replacement (B3++; section 3 of arXiv 2505.11293).

    Candidate j weighs, for all rows of community C, ``max(0, |{i in C: j in window(i)}| - 2·|{i in C: j in
    near(i)}|)``; the draws follow those weights. Members of C are left out.

    Args:
        clusters: int64[N], community of each row.
        window: int[N, m], -1 for none.
        near: int[N, p], the ranks before the window, whose rows are likely false negatives.
        count: h, at least 1.
        seed, epoch: of the draws.
        apart: int64[c, N], columns of ids: a row is never given a candidate of an equal id (not -1).

    Returns:
        int64[N, h], in the order drawn; -1 where fewer candidates have weight.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    order = np.argsort(clusters, kind="stable")
    offsets = np.append(np.flatnonzero(np.diff(clusters[order], prepend=np.int64(-1))), len(order))
    out = np.full((len(clusters), count), -1, np.int64)
    key = np.random.default_rng((seed, epoch, 3)).integers(0, 2**63, dtype=np.uint64)
    columns = np.empty((0, len(clusters)), np.int64) if apart is None else apart
    by_rows(_draw, len(offsets) - 1, order, offsets.astype(np.int64), clusters, window, near, columns, key, out)
    return out


@compiled(nogil=True)
def _pair_uniform(key, row, candidate):  # type: ignore[no-untyped-def]
    # The mixer over the pair: one number in (0, 1] each. Another odd factor keeps (1, 0) and (0, 1) apart.
    bits = mix(mix(key + np.uint64(row) * np.uint64(GOLDEN)) + np.uint64(candidate) * np.uint64(_SILVER))
    return uniform(bits) + 2.0**-53


@compiled(nogil=True)
def _draw(begin, end, order, offsets, clusters, window, near, columns, key, out):  # type: ignore[no-untyped-def]
    for cluster in range(begin, end):
        members = order[offsets[cluster] : offsets[cluster + 1]]
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
        for row in members:
            # Exponential races: the h smallest -log(u)/w are a draw without replacement in proportion to w.
            best = np.full(out.shape[1], np.inf)
            for i in range(size):
                candidate = candidates[i]
                banned = False
                for column in range(len(columns)):
                    if columns[column, row] >= 0 and columns[column, row] == columns[column, candidate]:
                        banned = True
                        break
                if banned:
                    continue
                time = -np.log(_pair_uniform(key, row, candidate)) / weights[i]
                rank = len(best)
                while rank > 0 and best[rank - 1] > time:
                    rank -= 1
                if rank < len(best):
                    for later in range(len(best) - 1, rank, -1):
                        best[later] = best[later - 1]
                        out[row, later] = out[row, later - 1]
                    best[rank] = time
                    out[row, rank] = candidate
