"""Ranks that B3 keeps: the search, cut into likely false negatives and strong ones. O(N²·D) where exact."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.knn import Neighbours, knn
from curation.selectors.b3.conflicts import conflict_pairs
from curation.selectors.b3.limits import SimilarityLimits, similarity_limits
from curation.selectors.b3.ranks import Ranks, check_ranks, cut_ranks, rank_bounds, rank_widths

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankWindow:
    """Every row's ranks, cut into those left out and those kept.

    Args:
        near: int[N, p], ranks 0 to p: likely false negatives. -1 where there are fewer.
        window: int[N, m], ranks p to p + m: strong negatives. -1 where there are fewer, or one was left out.
        labels: int64[N] classes, where there are any: rows of one take no rank for each other. -1 for none.
        limits: of similarity, where there are any: what exceeds them is left out of the window.
        metadata: engines and settings of the searches, as strings; see :func:`join_metadata`.
    """

    near: npt.NDArray[np.signedinteger[Any]]
    window: npt.NDArray[np.signedinteger[Any]]
    labels: Int64 | None = None
    limits: SimilarityLimits | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def rank_window(
    queries: Any,
    positives: Any,
    *,
    ranks: Ranks = (30, 130),
    apart: Int64 | None = None,
    labels: Int64 | None = None,
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
        ranks: (p, q): ranks 0 to p are ``near``, p to q the ``window``. Two floats are shares, and a mapping is from
            ``datasets``; see :func:`curation.selectors.b3.ranks.rank_bounds`.
        apart: int64[c, N], as :func:`curation.selectors.b3.conflict_columns` gives them: rows with an id in common
            take no rank for each other.
        labels: int64[N]: likewise; a share is then one of the rows of other labels. -1 for none.
        datasets: int64[N] ids; a row ranks its own data set only.
        similarity_ceiling, positive_margin: as :class:`B3`'s. What exceeds them becomes -1 in the window.
        metric, engine, precision, memory_budget, seed: as :func:`curation.gpu.knn.knn`'s.
    """
    size = len(queries)
    bounds = rank_bounds(check_ranks(ranks), size, datasets=datasets, labels=labels)
    widths = rank_widths(bounds)
    near, window = (np.full((size, width), -1, np.int32 if size < 2**31 else np.int64) for width in widths)
    unlike = [*conflict_pairs(apart), *(() if labels is None else [(labels, labels)])]
    limits = similarity_limits(
        queries, positives, metric=metric, similarity_ceiling=similarity_ceiling, positive_margin=positive_margin
    )
    searches = []
    for rows in by_dataset(datasets, size):
        left = queries if datasets is None else queries[rows]
        right = positives if datasets is None else positives[rows]
        count = int(bounds[rows, 1].max())
        if count == 0:
            continue
        nearest = knn(
            left, right, count=count, metric=metric, exclude=np.arange(len(rows)),
            exclude_same=[(mine[rows], theirs[rows]) for mine, theirs in unlike], engine=engine, precision=precision,
            memory_budget=memory_budget, seed=seed,
        )  # fmt: skip
        inside = np.where(nearest.indices < 0, -1, rows[nearest.indices]).astype(near.dtype)
        near[rows], kept, scores = cut_ranks(inside, nearest.scores, bounds[rows], widths)
        window[rows] = kept if limits is None else limits.drop(kept, scores, rows)
        searches.append(search_metadata(nearest))
    return RankWindow(near=near, window=window, labels=labels, limits=limits, metadata=join_metadata(searches))


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
