"""Ranks that B3 keeps: the search, cut into likely false negatives and strong ones. O(N²·D) where exact."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.knn import Neighbours, knn
from curation.selectors.b3.limits import SimilarityLimits, similarity_limits

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankWindow:
    """Every row's ranks, cut into those left out and those kept.

    Args:
        near: int[N, p], ranks 0 to p: likely false negatives. -1 where there are fewer.
        window: int[N, m], ranks p to p + m: strong negatives. -1 where there are fewer, or one was left out.
        limits: of similarity, where there are any: what exceeds them is left out of the window.
        metadata: engines and settings of the searches, as strings; see :func:`join_metadata`.
    """

    near: npt.NDArray[np.signedinteger[Any]]
    window: npt.NDArray[np.signedinteger[Any]]
    limits: SimilarityLimits | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def rank_window(
    queries: Any,
    positives: Any,
    *,
    ranks: tuple[int, int] = (30, 130),
    apart: Int64 | None = None,
    datasets: Int64 | None = None,
    metric: str = "ip",
    similarity_ceiling: float | None = None,
    positive_margin: float | None = None,
    engine: str = "auto",
    precision: str = "float32",
    memory_budget: int = 1 << 30,
    seed: int = 0,
) -> RankWindow:
    """Rank all other positives for each query, and cut the ranks (B3, section 3, steps 1 and 2).

    Args:
        queries, positives: [N, D] embeddings.
        ranks: (p, q): ranks 0 to p are ``near``, p to q the ``window``.
        apart: int64[c, N]: rows of an equal id (not -1) in one column take no rank for each other.
        datasets: int64[N] ids 0..; a row ranks its own data set only.
        similarity_ceiling, positive_margin: as :class:`B3`'s. What exceeds them becomes -1 in the window.
        metric, engine, precision, memory_budget, seed: as :func:`curation.gpu.knn.knn`'s.
    """
    size = len(queries)
    near = np.full((size, ranks[0]), -1, np.int32 if size < 2**31 else np.int64)
    window = np.full((size, ranks[1] - ranks[0]), -1, near.dtype)
    limits = similarity_limits(
        queries, positives, metric=metric, similarity_ceiling=similarity_ceiling, positive_margin=positive_margin
    )
    searches = []
    for rows in by_dataset(datasets, size):
        left = queries if datasets is None else queries[rows]
        right = positives if datasets is None else positives[rows]
        columns = [] if apart is None else [column[rows] for column in apart]
        nearest = knn(
            left, right, count=ranks[1], metric=metric, exclude=np.arange(len(rows)),
            exclude_same=[(column, column) for column in columns], engine=engine, precision=precision,
            memory_budget=memory_budget, seed=seed,
        )  # fmt: skip
        inside = np.where(nearest.indices < 0, -1, rows[nearest.indices]).astype(near.dtype)
        near[rows], window[rows] = inside[:, : ranks[0]], inside[:, ranks[0] :]
        if limits is not None:
            window[rows] = limits.drop(window[rows], nearest.scores[:, ranks[0] :], rows)
        searches.append(search_metadata(nearest))
    return RankWindow(near=near, window=window, limits=limits, metadata=join_metadata(searches))


def search_metadata(found: Neighbours) -> dict[str, str]:
    """What a plan says of one search: engine, whether it is exact, its recall where that was measured, settings."""
    recall = {} if found.recall is None else {"recall": f"{found.recall:.4f}"}
    return {"engine": found.engine, "exact": str(found.exact).lower(), **recall, **found.settings}


def join_metadata(searches: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What is true of all searches: ``exact`` if all are, the lowest ``recall``; else every value, once each."""
    values: dict[str, set[str]] = {}
    for search in searches:
        for name, value in search.items():
            values.setdefault(name, set()).update(value.split(", "))
    # "false" and the lowest recall, written with as many digits, come first.
    return {
        name: min(known) if name in ("exact", "recall") else ", ".join(sorted(known)) for name, known in values.items()
    }


def by_dataset(datasets: Int64 | None, size: int) -> Iterator[Int64]:
    """Rows of each data set, rising; all ``size`` rows at once where ``datasets`` is None."""
    if datasets is None:
        yield np.arange(size)
        return
    order = np.argsort(datasets, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(datasets[order])) + 1)
