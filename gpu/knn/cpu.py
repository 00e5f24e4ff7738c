"""Exact search by tiles of matrix products; memory is bounded by the tile."""

import numba
import numpy as np
import torch

from curation.gpu.knn.matrix import Float32, Int64, Matrix
from curation.gpu.threads import by_rows


class Exclusions:
    """Which database rows a query must never be given.

    Args:
        pairs: int64[Q, e], or [Q]; -1 for none.
        same: columns of (query ids, database ids): equal ids exclude each other; -1 excludes nothing.
    """

    def __init__(self, pairs: Int64 | None, same: list[tuple[Int64, Int64]], queries: int, database: int) -> None:
        if pairs is not None:
            pairs = np.asarray(pairs, np.int64).reshape(len(pairs), -1)
            if len(pairs) != queries:
                raise ValueError(f"exclude has {len(pairs)} rows, but there are {queries} queries")
            if pairs.size and (pairs.min() < -1 or pairs.max() >= database):
                raise ValueError(f"exclude must hold database rows 0..{database - 1}, or -1 for none")
        self._pairs = pairs
        self._same = []
        for query_ids, database_ids in same:
            query_ids, database_ids = np.asarray(query_ids, np.int64), np.asarray(database_ids, np.int64)
            if query_ids.shape != (queries,) or database_ids.shape != (database,):
                raise ValueError(
                    f"ids that exclude each other must have shapes ({queries},) and ({database},), "
                    f"not {query_ids.shape} and {database_ids.shape}"
                )
            order = np.argsort(database_ids, kind="stable")
            self._same.append((query_ids, order, database_ids[order]))

    def of(self, rows: Int64) -> tuple[Int64, Int64]:
        """(positions in ``rows``, database rows), both int64[E]; a pair may come twice."""
        places, banned = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if self._pairs is not None:
            block = self._pairs[rows]
            place, column = np.nonzero(block >= 0)
            places.append(place)
            banned.append(block[place, column])
        for query_ids, order, ordered in self._same:
            wanted = query_ids[rows]
            first = np.searchsorted(ordered, wanted, "left")
            counts = np.where(wanted < 0, 0, np.searchsorted(ordered, wanted, "right") - first)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places.append(np.repeat(np.arange(len(rows)), counts))
            banned.append(order[np.repeat(first, counts) + within])
        return np.concatenate(places), np.concatenate(banned)


def shortlist(
    queries: Float32,
    database: Matrix,
    keep: int,
    banned: tuple[Int64, Int64],
    *,
    l2: bool,
    tile: int,
    device: torch.device,
    precision: str,
    scan: bool,
) -> tuple[Int64, Float32]:
    """The ``keep`` best database rows of each query by tiled products: (int64[Q, keep], float32[Q, keep]).

    Rows come in no order, and -1 (-inf) stands where there are fewer. ``scan`` keeps a running threshold in
    compiled code, which beats ``torch.topk`` on a CPU several times over.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.from_numpy(queries).to(device, dtype)
    square = (left.float() ** 2).sum(1, keepdim=True) if l2 else None
    count = len(queries)
    room = max(4 * keep, 512) if scan else keep
    ids = torch.full((count, room), -1, dtype=torch.int64, device=device)
    best = torch.full((count, room), -torch.inf, device=device)
    fill, floor = np.zeros(count, np.int64), np.full(count, -np.inf, np.float32)
    for start in range(0, len(database), tile):
        block = torch.from_numpy(database.read(start, start + tile)).to(device, dtype)
        scores = (left @ block.T).float()
        if square is not None:
            scores.mul_(2).sub_((block.float() ** 2).sum(1)).sub_(square)
        inside = (banned[1] >= start) & (banned[1] < start + len(block))
        if inside.any():
            place = torch.from_numpy(banned[0][inside]).to(device)
            scores[place, torch.from_numpy(banned[1][inside] - start).to(device)] = -torch.inf
        if scan:
            by_rows(_scan, count, scores.numpy(), start, keep, ids.numpy(), best.numpy(), fill, floor)
        else:
            top, where = torch.topk(scores, min(keep, len(block)), dim=1)
            where = torch.where(torch.isneginf(top), -1, where + start)
            best, order = torch.topk(torch.cat([best, top], 1), keep, dim=1)
            ids = torch.cat([ids, where], 1).gather(1, order)
    if scan:
        by_rows(_compact, count, keep, ids.numpy(), best.numpy(), fill)
    return ids[:, :keep].cpu().numpy(), best[:, :keep].cpu().numpy()


def rank_rows(
    queries: Float32, database: Matrix, need: int, banned: tuple[Int64, Int64], *, l2: bool, budget: int
) -> tuple[Int64, Float32]:
    """The ``need`` best of every database row by score, ties by index: (int64[Q, need], float32[Q, need]).

    Scores all of them: for the few queries whose shortlist could not be shown to be complete.
    """
    ids = np.full((len(queries), need), -1, np.int64)
    best = np.full((len(queries), need), -np.inf, np.float32)
    rows = max(1, budget // (24 * len(database)))
    everything = np.arange(len(database), dtype=np.int64)
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        scores = database.score_pairs(part, np.broadcast_to(everything, (len(part), len(database))), l2=l2)
        mine = (banned[0] >= start) & (banned[0] < start + len(part))
        scores[banned[0][mine] - start, banned[1][mine]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :need]
        found = np.take_along_axis(scores, order, 1)
        width = order.shape[1]
        best[start : start + rows, :width] = found
        ids[start : start + rows, :width] = np.where(np.isneginf(found), -1, order)
    return ids, best


@numba.njit(cache=True, nogil=True)
def _keep_best(ids, best, fill, keep):  # type: ignore[no-untyped-def]
    # Hoare's selection on the two arrays together: the first `keep` of `fill` become the largest ones.
    low, high = 0, fill - 1
    while low < high:
        pivot = best[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while best[left] > pivot:
                left += 1
            while best[right] < pivot:
                right -= 1
            if left <= right:
                best[left], best[right] = best[right], best[left]
                ids[left], ids[right] = ids[right], ids[left]
                left += 1
                right -= 1
        if keep - 1 <= right:
            high = right
        elif keep - 1 >= left:
            low = left
        else:
            return


@numba.njit(cache=True, nogil=True)
def _scan(begin, end, scores, start, keep, ids, best, fill, floor):  # type: ignore[no-untyped-def]
    room = ids.shape[1]
    for query in range(begin, end):
        count, limit = fill[query], floor[query]
        for column in range(scores.shape[1]):
            score = scores[query, column]
            if score > limit:
                best[query, count] = score
                ids[query, count] = start + column
                count += 1
                if count == room:
                    _keep_best(ids[query], best[query], count, keep)
                    count = keep
                    limit = best[query, 0]
                    for place in range(1, keep):
                        limit = min(limit, best[query, place])
        fill[query], floor[query] = count, limit


@numba.njit(cache=True, nogil=True)
def _compact(begin, end, keep, ids, best, fill):  # type: ignore[no-untyped-def]
    for query in range(begin, end):
        if fill[query] > keep:
            _keep_best(ids[query], best[query], fill[query], keep)
