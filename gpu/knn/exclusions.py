"""Exclusions: which database rows a query must never be given, whatever its engine."""

import numpy as np

from curation.gpu.knn.matrix import Int64


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
        positions, banned = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if self._pairs is not None:
            block = self._pairs[rows]
            position, column = np.nonzero(block >= 0)
            positions.append(position)
            banned.append(block[position, column])
        for query_ids, order, ordered in self._same:
            ids = query_ids[rows]
            first = np.searchsorted(ordered, ids, "left")
            counts = np.where(ids < 0, 0, np.searchsorted(ordered, ids, "right") - first)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            positions.append(np.repeat(np.arange(len(rows)), counts))
            banned.append(order[np.repeat(first, counts) + within])
        return np.concatenate(positions), np.concatenate(banned)
