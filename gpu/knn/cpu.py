"""Search by blocks of queries and tiles of matrix products, on the host or by torch; memory is bounded by the tile."""

import numpy as np
import torch

from curation.gpu.compiled import compiled
from curation.gpu.knn.exclusions import Banned
from curation.gpu.knn.matrix import Float32, Int64, Matrix
from curation.gpu.threads import by_rows


def shortlist(
    queries: Float32,
    database: Matrix,
    keep: int,
    banned: Banned,
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
    # An id of -1 equals none of the database's.
    compared = [
        (torch.from_numpy(np.where(mine < 0, -2, mine)).to(device), torch.from_numpy(theirs).to(device))
        for mine, theirs in banned.columns
    ]
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
        inside = (banned.rows >= start) & (banned.rows < start + len(block))
        if inside.any():
            query = torch.from_numpy(banned.queries[inside]).to(device)
            scores[query, torch.from_numpy(banned.rows[inside] - start).to(device)] = -torch.inf
        for mine, theirs in compared:
            scores.masked_fill_(mine[:, None] == theirs[start : start + len(block)], -torch.inf)
        if scan:
            by_rows(_scan, count, scores.numpy(), start, keep, ids.numpy(), best.numpy(), fill, floor)
        else:
            top, columns = torch.topk(scores, min(keep, len(block)), dim=1)
            rows = torch.where(torch.isneginf(top), -1, columns + start)
            best, order = torch.topk(torch.cat([best, top], 1), keep, dim=1)
            ids = torch.cat([ids, rows], 1).gather(1, order)
    if scan:
        by_rows(_compact, count, keep, ids.numpy(), best.numpy(), fill)
    return ids[:, :keep].cpu().numpy(), best[:, :keep].cpu().numpy()


def rank_rows(
    queries: Float32, database: Matrix, need: int, banned: Banned, *, l2: bool, budget: int
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
        here = banned.within(start, start + len(part))
        scores[here.queries, here.rows] = -np.inf
        for mine, theirs in here.columns:
            scores[(mine[:, None] == theirs) & (mine >= 0)[:, None]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :need]
        top = np.take_along_axis(scores, order, 1)
        width = order.shape[1]
        best[start : start + rows, :width] = top
        ids[start : start + rows, :width] = np.where(np.isneginf(top), -1, order)
    return ids, best


@compiled(nogil=True)
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


@compiled(nogil=True)
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
                    for i in range(1, keep):
                        limit = min(limit, best[query, i])
        fill[query], floor[query] = count, limit


@compiled(nogil=True)
def _compact(begin, end, keep, ids, best, fill):  # type: ignore[no-untyped-def]
    for query in range(begin, end):
        if fill[query] > keep:
            _keep_best(ids[query], best[query], fill[query], keep)
