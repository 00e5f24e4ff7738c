"""Exclusions: which database rows a query must never be given, whatever its engine.

What few rows share is listed, pair by pair. Ids that many rows share, as labels of classes, would make lists of
O(Q·N); they are compared instead, tile by tile.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation.gpu.knn.matrix import Int64

# An id that more rows of the database share is compared, not listed.
MOST_LISTED = 256


@dataclass(frozen=True, eq=False)
class Banned:
    """What some queries must never be given.

    Args:
        queries: int64[E], positions among these queries; ``rows``: int64[E], database rows. A pair may come twice.
        columns: (int64[Q], int64[N]) ids that exclude each other where they are equal and not -1.
    """

    queries: Int64
    rows: Int64
    columns: tuple[tuple[Int64, Int64], ...] = ()

    def most(self) -> int:
        """The most rows that are listed for one query."""
        return int(np.bincount(self.queries, minlength=1).max())

    def within(self, start: int, stop: int) -> "Banned":
        """The same for the queries from ``start`` to ``stop`` alone."""
        inside = (self.queries >= start) & (self.queries < stop)
        columns = tuple((ids[start:stop], known) for ids, known in self.columns)
        return Banned(self.queries[inside] - start, self.rows[inside], columns)

    def among(self, ids: Int64, size: int) -> npt.NDArray[np.bool_]:
        """bool[Q, c]: which of the database rows ``ids`` int64[Q, c], of ``size``, are excluded; -1 is not."""
        out = np.zeros(ids.shape, bool)
        if len(self.queries):
            keys = ids + np.arange(len(ids))[:, None] * np.int64(size)
            out = np.isin(keys, self.queries * np.int64(size) + self.rows)
        for mine, theirs in self.columns:
            out |= (theirs[ids] == mine[:, None]) & (mine >= 0)[:, None]
        out &= ids >= 0
        return out


class Exclusions:
    """Which database rows a query must never be given.

    Args:
        pairs: int64[Q, e], or [Q]; -1 for none.
        same: columns of (query ids, database ids): equal ids exclude each other; -1 excludes nothing.
        queries, database: Q and N, how many rows there are of each.

    Raises:
        ValueError: a shape does not fit, or a database row does not exist.
    """

    def __init__(self, pairs: Int64 | None, same: list[tuple[Int64, Int64]], queries: int, database: int) -> None:
        if pairs is not None:
            pairs = np.asarray(pairs, np.int64).reshape(len(pairs), -1)
            if len(pairs) != queries:
                raise ValueError(f"exclude has {len(pairs)} rows, but there are {queries} queries")
            if pairs.size and (pairs.min() < -1 or pairs.max() >= database):
                raise ValueError(f"exclude must hold database rows 0..{database - 1}, or -1 for none")
        self._pairs = pairs
        self._listed = []
        self._compared = []
        for query_ids, database_ids in same:
            query_ids, database_ids = np.asarray(query_ids, np.int64), np.asarray(database_ids, np.int64)
            if query_ids.shape != (queries,) or database_ids.shape != (database,):
                raise ValueError(
                    f"ids that exclude each other must have shapes ({queries},) and ({database},), "
                    f"not {query_ids.shape} and {database_ids.shape}"
                )
            order = np.argsort(database_ids, kind="stable")
            ordered = database_ids[order]
            if _most(ordered) > MOST_LISTED:
                self._compared.append((query_ids, np.maximum(database_ids, -1)))
            else:
                self._listed.append((query_ids, order, ordered))

    @property
    def compared(self) -> bool:
        """Whether some ids are shared by too many rows to list them."""
        return bool(self._compared)

    def of(self, rows: Int64) -> Banned:
        """What the queries ``rows`` must never be given; positions are those in ``rows``."""
        positions, banned = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if self._pairs is not None:
            block = self._pairs[rows]
            position, column = np.nonzero(block >= 0)
            positions.append(position)
            banned.append(block[position, column])
        for query_ids, order, ordered in self._listed:
            ids = query_ids[rows]
            first = np.searchsorted(ordered, ids, "left")
            counts = np.where(ids < 0, 0, np.searchsorted(ordered, ids, "right") - first)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            positions.append(np.repeat(np.arange(len(rows)), counts))
            banned.append(order[np.repeat(first, counts) + within])
        columns = tuple((query_ids[rows], database_ids) for query_ids, database_ids in self._compared)
        return Banned(np.concatenate(positions), np.concatenate(banned), columns)


def _most(ordered: Int64) -> int:
    # The longest run of one id that is not -1.
    ordered = ordered[np.searchsorted(ordered, 0) :]
    cuts = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1))
    return int(np.diff(cuts).max(initial=0))
