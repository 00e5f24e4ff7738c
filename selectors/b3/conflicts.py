"""Conflicts: rows that must never share a batch, swapped apart, or an error that says why they cannot be.

Each swap leaves both sides free of new conflicts, so one pass ends it. A search for a partner looks at the
rows that share an id with either side only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.graph import Graph

Int64 = npt.NDArray[np.int64]


def conflict_columns(apart: npt.ArrayLike | None, count: int) -> Int64 | None:
    """int64[c, N], ids 0.. of what is shared and -1 for what is not; None where nothing is shared."""
    if apart is None:
        return None
    ids = np.asarray(apart, np.int64)
    ids = ids[:, None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != count:
        raise ValueError(f"ids of rows to keep apart must have shape [{count}] or [{count}, c], not {ids.shape}")
    columns = []
    for column in ids.T:
        _, dense, sizes = np.unique(column, return_inverse=True, return_counts=True)
        shared = (sizes > 1)[dense] & (column >= 0)
        dense[~shared] = -1
        dense[shared] = np.unique(dense[shared], return_inverse=True)[1]
        columns.append(dense)
    kept = [column for column in columns if column.max(initial=-1) >= 0]
    return np.array(kept, np.int64) if kept else None


def separate(rows: Int64, offsets: Int64, columns: Int64, rng: np.random.Generator) -> Int64:
    """Swap rows between batches until no two of a batch share an id of any column.

    Args:
        rows: int64[M], candidates in batch order; ``offsets`` int64[B + 1] cuts them.
        columns: int64[c, N], as :func:`conflict_columns` gives them.
        rng: where each search for a partner starts.

    Returns:
        int64[M], the same rows.

    Raises:
        ValueError: an id has more rows than there are batches, or no arrangement was found.
    """
    count = len(offsets) - 1
    local = conflict_columns(columns[:, rows].T, len(rows))
    if local is None:
        return rows
    for column in local:
        most = np.bincount(column[column >= 0], minlength=1)
        if most.max() > count:
            first = rows[np.flatnonzero(column == np.argmax(most))[0]]
            raise ValueError(
                f"{most.max()} rows must be kept apart (row {first} is one), but there are {count} batches: "
                "use smaller batches, or drop or merge some of those rows"
            )
    order = np.arange(len(rows))
    begin = rng.integers(0, len(rows), len(rows))
    failed = _separate(order, offsets, local, *_members(local), begin, *_NO_GRAPH)
    if failed < 0:
        return rows[order]
    if len(local) == 1:
        dealt = _deal(offsets, local[0], rng)
        if dealt is not None:
            return rows[dealt]
    raise ValueError(
        f"row {rows[failed]} cannot be kept apart from others in {count} batches: "
        "use smaller batches, or drop or merge rows that share an id"
    )


def separate_clusters(clusters: Int64, columns: Int64, graph: Graph) -> Int64:
    """Swap rows that must not meet out of shared communities, to where their edges lead: as far as it goes.

    Args:
        clusters: int64[N]; sizes stay as they are.
        columns: int64[c, N], as :func:`conflict_columns` gives them.
        graph: N nodes.

    Returns:
        int64[N].
    """
    rows = np.argsort(clusters, kind="stable")
    names, sizes = np.unique(clusters, return_counts=True)
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int64)
    begin = np.arange(1, len(rows) + 1)
    _separate(rows, offsets, columns, *_members(columns), begin, graph.starts, graph.neighbours, graph.weights)
    out = np.empty_like(clusters)
    out[rows] = np.repeat(names, sizes)
    return out


_NO_GRAPH = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8))


def _members(columns: Int64) -> tuple[Int64, Int64]:
    # Of column c, the rows with id v are members[c, starts[c, v]:starts[c, v + 1]].
    most = int(columns.max()) + 2
    members = np.argsort(columns, axis=1, kind="stable")
    starts = np.array(
        [np.searchsorted(column[order], np.arange(most)) for column, order in zip(columns, members, strict=True)]
    )
    return members.astype(np.int64), starts.astype(np.int64)


def _deal(offsets: Int64, ids: Int64, rng: np.random.Generator) -> Int64 | None:
    # One column: each id goes to the batches with most room, which succeeds wherever anything can
    # (Gale and Ryser). It forgets the communities, so it is only the last resort.
    room = np.diff(offsets)
    shuffle = rng.permutation(len(room))
    batch = np.full(len(ids), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    _, starts = np.unique(ids[order], return_index=True)
    groups = [group for group in np.split(order, starts[1:]) if ids[group[0]] >= 0]
    for group in sorted(groups, key=len, reverse=True):
        most = shuffle[np.argsort(-room[shuffle], kind="stable")[: len(group)]]
        if room[most[-1]] < 1:
            return None
        batch[group] = most
        room[most] -= 1
    batch[ids < 0] = np.repeat(np.arange(len(room)), room)
    return np.argsort(batch, kind="stable")


@compiled(nogil=True)
def _clashes(row: Any, other_bin: Any, skip: Any, bins: Any, columns: Any, members: Any, starts: Any) -> Any:
    # Rows of `other_bin`, but `row` and `skip`, that share an id with `row`: how many, and one of them.
    clashes, last = 0, -1
    for column in range(len(columns)):
        shared = columns[column, row]
        if shared >= 0:
            for member in range(starts[column, shared], starts[column, shared + 1]):
                other = members[column, member]
                if bins[other] == other_bin and other != row and other != skip and other != last:
                    clashes += 1
                    last = other
    return clashes, last


@compiled(nogil=True)
def _swap_into(
    row: Any, target: Any, begin: Any, rows: Any, offsets: Any, bins: Any, positions: Any, columns: Any,
    members: Any, starts: Any,
) -> Any:  # fmt: skip
    clashes, rival = _clashes(row, target, -1, bins, columns, members, starts)
    if clashes > 1:
        return False
    source, size = bins[row], offsets[target + 1] - offsets[target]
    for step in range(size):
        other = rows[offsets[target] + (begin + step) % size]
        if (clashes == 0 or other == rival) and (_clashes(other, source, row, bins, columns, members, starts)[0] == 0):
            bins[row], bins[other] = target, source
            positions[row], positions[other] = positions[other], positions[row]
            rows[positions[row]], rows[positions[other]] = row, other
            return True
    return False


@compiled(nogil=True)
def _separate(
    rows: Any, offsets: Any, columns: Any, members: Any, starts: Any, begin: Any, edge_starts: Any,
    neighbours: Any, weights: Any,
) -> Any:  # fmt: skip
    # Returns -1, or the position of the first row that found no partner.
    count = len(offsets) - 1
    bins = np.full(columns.shape[1], -1, np.int64)
    positions = np.full(columns.shape[1], -1, np.int64)
    for target in range(count):
        for position in range(offsets[target], offsets[target + 1]):
            bins[rows[position]] = target
            positions[rows[position]] = position
    gain = np.zeros(count, np.int64)
    failed = -1
    for position in range(len(rows)):
        row = rows[position]
        if _clashes(row, bins[row], -1, bins, columns, members, starts)[0] == 0:
            continue
        done = False
        if len(edge_starts):
            for edge in range(edge_starts[row], edge_starts[row + 1]):
                gain[bins[neighbours[edge]]] += weights[edge]
            gain[bins[row]] = 0
            for _ in range(8):
                best = bins[row]
                for edge in range(edge_starts[row], edge_starts[row + 1]):
                    target = bins[neighbours[edge]]
                    if gain[target] > gain[best] or (gain[target] == gain[best] > 0 and target < best):
                        best = target
                if gain[best] == 0:
                    break
                gain[best] = 0
                done = _swap_into(row, best, 0, rows, offsets, bins, positions, columns, members, starts)
                if done:
                    break
            for edge in range(edge_starts[row], edge_starts[row + 1]):
                gain[bins[neighbours[edge]]] = 0
        step = 0
        while not done and step < count:
            target = (bins[row] + begin[position] + step) % count
            step += 1
            if target != bins[row]:
                done = _swap_into(
                    row, target, begin[position], rows, offsets, bins, positions, columns, members, starts
                )
        if not done and failed < 0:
            failed = position
    return failed
