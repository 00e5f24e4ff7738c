"""Conflicts: ids of rows that must not meet, and communities that such rows are swapped out of.

Wherever ``apart`` is int64[c, N], two rows must not meet if they have an id in common, in whichever of the columns;
-1 is no id. Ids of one column differ from those of another, unless both are of one kind (``across``).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.graph import Graph

Int64 = npt.NDArray[np.int64]


def conflict_columns(
    apart: npt.ArrayLike | None, count: int, *, across: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
) -> Int64 | None:
    """int64[c, N], the ids by which rows must not meet; None where no two rows share any.

    Args:
        apart: int[N] or int[N, c], ids that are compared within their column; negative for none.
        count: N.
        across: two of int[N], such as the ids of queries' and of positives' texts, which are compared within their
            column and with each other.

    Raises:
        ValueError: the shapes do not fit.
    """
    given = np.empty((count, 0), np.int64) if apart is None else np.asarray(apart, np.int64)
    ids = given[:, None] if given.ndim == 1 else given
    if ids.ndim != 2 or len(ids) != count:
        raise ValueError(f"ids of rows to keep apart must have shape [{count}] or [{count}, c], not {given.shape}")
    kinds = [column[None] for column in ids.T]
    if across is not None:
        sides = [np.asarray(side, np.int64) for side in across]
        if len(sides) != 2 or any(side.shape != (count,) for side in sides):
            raise ValueError(f"across must be two columns of ids of shape [{count}], not {[s.shape for s in sides]}")
        kinds.append(np.stack(sides))
    columns, first = [], 0
    for kind in kinds:
        shared = shared_ids(kind)
        columns += [np.where(column < 0, -1, first + column) for column in shared if column.max(initial=-1) >= 0]
        first += int(shared.max(initial=-1)) + 1
    return np.array(columns, np.int64) if columns else None


def shared_ids(columns: Int64) -> Int64:
    """int64[c, N], ids 0.. that two rows or more have in common, each once in a row; -1 for others."""
    ids = np.where(columns < 0, -1, columns)
    for column in range(1, len(ids)):
        ids[column][(ids[:column] == ids[column]).any(0)] = -1
    _, dense, counts = np.unique(ids, return_inverse=True, return_counts=True)
    dense = dense.reshape(ids.shape)
    common = (counts > 1)[dense] & (ids >= 0)
    out = np.full(ids.shape, -1, np.int64)
    out[common] = np.unique(dense[common], return_inverse=True)[1]
    return out


def conflict_pairs(columns: Int64 | None) -> list[tuple[Int64, Int64]]:
    """Pairs of columns, of a query's row and of a candidate's: one is not the other's negative where any are equal.

    Args:
        columns: int64[c, N], as :func:`conflict_columns` gives them.

    Returns:
        Every column with itself; two whose ids are of one kind with each other, both ways.
    """
    if columns is None:
        return []
    ends = [(column[column >= 0].min(initial=np.iinfo(np.int64).max), column.max(initial=-1)) for column in columns]
    return [
        (mine, theirs)
        for mine, (low, high) in zip(columns, ends, strict=True)
        for theirs, (start, stop) in zip(columns, ends, strict=True)
        if low <= stop and start <= high
    ]


def count_together(batches: Int64, columns: Int64) -> int:
    """How many rows stand in a batch beside one that they must not meet.

    Args:
        batches: int64[N], -1 for a row in none.
        columns: int64[c, N], as :func:`conflict_columns` gives them.
    """
    ids = shared_ids(np.where(batches < 0, -1, columns))
    clashing = np.zeros(len(batches), bool)
    place = batches * (int(ids.max(initial=-1)) + 1) + ids
    _, which, counts = np.unique(place[ids >= 0], return_inverse=True, return_counts=True)
    clashing[np.broadcast_to(np.arange(len(batches)), ids.shape)[ids >= 0][(counts > 1)[which]]] = True
    return int(np.count_nonzero(clashing))


def separate_clusters(clusters: Int64, columns: Int64, graph: Graph) -> Int64:
    """Swap rows that must not meet out of shared communities, to where their edges lead: as far as it goes.

    Each swap leaves both sides free of new conflicts, so one pass ends it.

    Args:
        clusters: int64[N]; sizes stay as they are.
        columns: int64[c, N], as :func:`conflict_columns` gives them.
        graph: N nodes.

    Returns:
        int64[N].
    """
    columns = shared_ids(columns)
    rows = np.argsort(clusters, kind="stable")
    names, sizes = np.unique(clusters, return_counts=True)
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int64)
    _separate(rows, offsets, columns, *_members(columns), graph.starts, graph.neighbours, graph.weights)
    out = np.empty_like(clusters)
    out[rows] = np.repeat(names, sizes)
    return out


def _members(columns: Int64) -> tuple[Int64, Int64]:
    # The rows of id i are members[starts[i]:starts[i + 1]].
    which, rows = np.nonzero(columns >= 0)
    named = columns[which, rows]
    return rows[np.argsort(named, kind="stable")], np.append(0, np.cumsum(np.bincount(named))).astype(np.int64)


@compiled(nogil=True)
def _clashes(row: Any, other_bin: Any, skip: Any, bins: Any, columns: Any, members: Any, starts: Any) -> Any:
    # Rows of `other_bin`, but `row` and `skip`, that share an id with `row`: how many, and one of them.
    clashes, last = 0, -1
    for column in range(len(columns)):
        shared = columns[column, row]
        if shared >= 0:
            for member in range(starts[shared], starts[shared + 1]):
                other = members[member]
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
    rows: Any, offsets: Any, columns: Any, members: Any, starts: Any, edge_starts: Any, neighbours: Any, weights: Any
) -> None:
    count = len(offsets) - 1
    bins = np.full(columns.shape[1], -1, np.int64)
    positions = np.full(columns.shape[1], -1, np.int64)
    for target in range(count):
        for position in range(offsets[target], offsets[target + 1]):
            bins[rows[position]] = target
            positions[rows[position]] = position
    gain = np.zeros(count, np.int64)
    for position in range(len(rows)):
        row = rows[position]
        if _clashes(row, bins[row], -1, bins, columns, members, starts)[0] == 0:
            continue
        done = False
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
        for step in range(count):
            target = (bins[row] + position + 1 + step) % count
            if done:
                break
            if target != bins[row]:
                done = _swap_into(row, target, position, rows, offsets, bins, positions, columns, members, starts)
