"""The ranks that B3 keeps: the search, cut into likely false negatives and strong ones. O(N²·D) where exact."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu._matrix import Matrix
from curation.gpu.knn import knn

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankWindow:
    """Every row's ranks, cut into those left out and those kept.

    Args:
        near: int[N, p], ranks 0 to p: likely false negatives. -1 where there are fewer.
        window: int[N, m], ranks p to p + m: strong negatives. -1 where there are fewer, or one was left out.
        metadata: engine and settings of the search, as strings.
    """

    near: npt.NDArray[np.signedinteger[Any]]
    window: npt.NDArray[np.signedinteger[Any]]
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
    metadata: dict[str, str] = {}
    for rows in by_dataset(datasets, size):
        left = queries if datasets is None else queries[rows]
        right = positives if datasets is None else positives[rows]
        columns = [] if apart is None else [column[rows] for column in apart]
        found = knn(
            left, right, count=ranks[1], metric=metric, exclude=np.arange(len(rows)),
            exclude_same=[(column, column) for column in columns], engine=engine, precision=precision,
            memory_budget=memory_budget, seed=seed,
        )  # fmt: skip
        inside = np.where(found.indices < 0, -1, rows[found.indices]).astype(near.dtype)
        near[rows], window[rows] = inside[:, : ranks[0]], inside[:, ranks[0] :]
        scores = found.scores[:, ranks[0] :]
        if similarity_ceiling is not None:
            window[rows] = np.where(scores > similarity_ceiling, -1, window[rows])
        if positive_margin is not None:
            own = _own_scores(left, right, metric == "l2")
            window[rows] = np.where(scores > positive_margin * own[:, None], -1, window[rows])
        recall = {} if found.recall is None else {"recall": f"{found.recall:.4f}"}
        metadata |= {"engine": found.engine, "exact": str(found.exact).lower(), **recall, **found.settings}
    return RankWindow(near=near, window=window, metadata=metadata)


def _own_scores(queries: Any, positives: Any, l2: bool, block: int = 65_536) -> npt.NDArray[np.float32]:
    left, right = Matrix(queries, "queries"), Matrix(positives, "positives")
    return np.concatenate(
        [
            right.score_pairs(
                left.read(start, start + block), np.arange(start, min(start + block, len(left)))[:, None], l2=l2
            )[:, 0]
            for start in range(0, len(left), block)
        ]
    )


def by_dataset(datasets: Int64 | None, size: int) -> Iterator[Int64]:
    # Rows of each data set, rising; all rows at once without any.
    if datasets is None:
        yield np.arange(size)
        return
    order = np.argsort(datasets, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(datasets[order])) + 1)
