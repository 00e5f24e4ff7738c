"""B3++: explicit hard negatives, drawn from what the members of a row's community rank in their windows.

The arithmetic of one community needs its K·m window ids and K·p near ids, sorted once: O(N·(m + p)·log) time
for all, in compiled code and in parallel; a draw is a function of (seed, epoch, row, candidate) alone, so it
does not depend on the number of threads.
"""

import numba
import numpy as np
import numpy.typing as npt

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


@numba.njit(cache=True, nogil=True)
def _pair_uniform(key, row, candidate):  # type: ignore[no-untyped-def]
    # The mixer over the pair: one number in (0, 1] each. Another odd factor keeps (1, 0) and (0, 1) apart.
    bits = mix(mix(key + np.uint64(row) * np.uint64(GOLDEN)) + np.uint64(candidate) * np.uint64(_SILVER))
    return uniform(bits) + 2.0**-53


@numba.njit(cache=True, nogil=True)
def _draw(begin, end, order, offsets, clusters, window, near, columns, key, out):  # type: ignore[no-untyped-def]
    for cluster in range(begin, end):
        members = order[offsets[cluster] : offsets[cluster + 1]]
        wanted = np.empty(len(members) * window.shape[1], np.int64)
        doubted = np.empty(len(members) * near.shape[1], np.int64)
        for place in range(len(members)):
            row = members[place]
            for rank in range(window.shape[1]):
                wanted[place * window.shape[1] + rank] = window[row, rank]
            for rank in range(near.shape[1]):
                doubted[place * near.shape[1] + rank] = near[row, rank]
        wanted.sort()
        doubted.sort()
        candidates = np.empty(len(wanted), np.int64)
        weights = np.empty(len(wanted), np.float64)
        found, start, doubt = 0, 0, 0
        while start < len(wanted):
            stop = start
            while stop < len(wanted) and wanted[stop] == wanted[start]:
                stop += 1
            candidate = wanted[start]
            if candidate >= 0 and clusters[candidate] != clusters[members[0]]:
                while doubt < len(doubted) and doubted[doubt] < candidate:
                    doubt += 1
                after = doubt
                while after < len(doubted) and doubted[after] == candidate:
                    after += 1
                weight = stop - start - 2 * (after - doubt)
                if weight > 0:
                    candidates[found] = candidate
                    weights[found] = weight
                    found += 1
            start = stop
        for row in members:
            # Exponential races: the h smallest -log(u)/w are a draw without replacement in proportion to w.
            best = np.full(out.shape[1], np.inf)
            for place in range(found):
                candidate = candidates[place]
                banned = False
                for column in range(len(columns)):
                    if columns[column, row] >= 0 and columns[column, row] == columns[column, candidate]:
                        banned = True
                        break
                if banned:
                    continue
                time = -np.log(_pair_uniform(key, row, candidate)) / weights[place]
                spot = len(best)
                while spot > 0 and best[spot - 1] > time:
                    spot -= 1
                if spot < len(best):
                    for later in range(len(best) - 1, spot, -1):
                        best[later] = best[later - 1]
                        out[row, later] = out[row, later - 1]
                    best[spot] = time
                    out[row, spot] = candidate
