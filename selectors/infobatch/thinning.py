"""Plan of an epoch that InfoBatch prunes: what stays of each batch, and batches joined where the plan permits.

Pruned rows leave their batch short. A batch gives its rows away to others that have room, as long as all of them find
a place; the others then fill up. A row moves only within its data set, and never to a row that shares an id with it
(:attr:`curation.plan.BatchPlan.apart`), so what the plan keeps apart stays apart. No batch is left with fewer rows than
pruning left it. A plan that does not say what it keeps apart is pruned, and no more.

Cost: O(M), and O(B) more for each row that has an id and moves. A pure function, so all ranks derive the same batches.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.plan import BatchPlan

Int64 = npt.NDArray[np.int64]


def thinned(plan: BatchPlan, kept: npt.NDArray[np.bool_], batch_size: int) -> BatchPlan:
    """What stays of a plan: each of its rows that is kept, once.

    Args:
        plan: M rows in batches of any sizes.
        kept: bool[N], which candidates stay.
        batch_size: no batch has more rows: larger ones are cut in even parts, smaller ones joined up to it.

    Returns:
        BatchPlan: indices and offsets alone, in the plan's order; a batch that was joined stands where the one stood
        that kept its rows together.
    """
    rows = np.flatnonzero(kept[plan.indices])
    counts = np.diff(np.searchsorted(rows, plan.offsets))
    parts = -(-counts // batch_size)
    batch = np.repeat(np.arange(len(plan)), parts)
    part = np.arange(len(batch)) - np.repeat(np.cumsum(parts) - parts, parts)
    sizes = counts[batch] * (part + 1) // parts[batch] - counts[batch] * part // parts[batch]
    if plan.apart is not None and len(sizes) > 1:
        datasets = np.zeros(len(sizes), np.int64) if plan.datasets is None else plan.datasets[batch]
        homes = _joined(sizes, datasets, *_members(plan.apart, rows), batch_size)
        rows = rows[np.argsort(homes, kind="stable")]
        sizes = np.bincount(homes, minlength=1)
    sizes = sizes[sizes > 0]
    return BatchPlan(indices=plan.indices[rows], offsets=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def _members(apart: Int64, rows: Int64) -> tuple[Int64, Int64, Int64, Int64]:
    # Row i of `rows` has the ids `ids[first[i]:first[i + 1]]`; id v is that of `members[start[v]:start[v + 1]]`.
    place = np.searchsorted(rows, apart[:, 0])
    there = place < len(rows)
    there[there] = rows[place[there]] == apart[there, 0]
    place = place[there]
    names, ids = np.unique(apart[there, 1], return_inverse=True)
    order = np.argsort(ids, kind="stable")
    start = np.searchsorted(ids[order], np.arange(len(names) + 1))
    return np.searchsorted(place, np.arange(len(rows) + 1)), ids, start, place[order]


def _joined(
    sizes: Int64, datasets: Int64, first: Int64, ids: Int64, start: Int64, members: Int64, batch_size: int
) -> Int64:
    """int64[rows]: the batch of each row, after batches gave their rows away.

    Of a data set with n rows the smallest batches give, all but the ⌈n / batch_size⌉ largest.
    """
    order = np.lexsort((sizes, datasets))
    of_order = datasets[order]
    bounds = np.flatnonzero(np.concatenate([[True], of_order[1:] != of_order[:-1], [True]]))
    needed = -(-np.add.reduceat(sizes[order], bounds[:-1]) // batch_size)
    homes = np.repeat(np.arange(len(sizes)), sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    _join(homes, offsets, order, bounds, needed, batch_size - sizes, first, ids, start, members)
    return homes


@compiled(nogil=True)
def _join(
    homes: Any, offsets: Any, order: Any, bounds: Any, needed: Any, room: Any, first: Any, ids: Any, start: Any,
    members: Any,
) -> Any:  # fmt: skip
    taken = np.full(len(room), -1, np.int64)  # the last row for which a batch was found to hold one of its ids
    takers = np.empty(len(room), np.int64)
    for part in range(len(needed)):
        low, high = bounds[part], bounds[part + 1]
        givers = high - low - needed[part]
        count, front, free = 0, 0, 0
        for position in range(low + givers, high):
            takers[count] = order[position]
            free += room[order[position]]
            count += 1
        for position in range(low, low + givers):
            giver = order[position]
            begin, end = offsets[giver], offsets[giver + 1]
            done = end - begin <= free
            old_front = front
            row = begin
            while done and row < end:
                for place in range(first[row], first[row + 1]):
                    for other in range(start[ids[place]], start[ids[place] + 1]):
                        if members[other] != row:
                            taken[homes[members[other]]] = row
                while front < count and room[takers[front]] == 0:
                    front += 1
                at = front
                while at < count and (room[takers[at]] == 0 or taken[takers[at]] == row):
                    at += 1
                done = at < count
                if done:
                    homes[row] = takers[at]
                    room[takers[at]] -= 1
                    row += 1
            if done:
                free -= end - begin
            else:
                for back in range(begin, row):
                    room[homes[back]] += 1
                    homes[back] = giver
                front = old_front
                takers[count] = giver
                count += 1
                free += room[giver]
