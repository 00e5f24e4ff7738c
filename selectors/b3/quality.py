"""Quality of a plan: how hard its batches are, beside random batches of the same sizes.

Everything is summed without a batch-by-batch matrix: O(M·(D + m)) time, and memory for a block of rows.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.graph import Graph
from curation.gpu.knn.matrix import Matrix
from curation.gpu.threads import by_rows
from curation.plan import BatchPlan

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlanQuality:
    """Means over the rows of a plan; METHODS' statistics for B3.

    Args:
        similarity: mean inner product of a query with the other rows' positives in its batch.
        window_neighbours: mean number of rows in a row's batch that stand in its rank window: hard negatives.
        false_negatives: share of in-batch negatives that stand among the row's nearest, before the window.
        inside_edges: share of the graph's weight inside communities; nan without a graph or communities.
    """

    similarity: float
    window_neighbours: float
    false_negatives: float
    inside_edges: float

    def as_dict(self) -> dict[str, float]:
        """Field names and values."""
        return asdict(self)


def plan_quality(
    plan: BatchPlan,
    queries: Any,
    positives: Any,
    *,
    window: npt.ArrayLike,
    near: npt.ArrayLike,
    graph: Graph | None = None,
) -> PlanQuality:
    """Measure a plan.

    Args:
        plan: batches of rows 0..N-1.
        queries, positives: [N, D] floats, arrays, memory maps or torch tensors.
        window: int[N, m], the ranks that the graph was made of; -1 for none.
        near: int[N, p], the ranks before them.
        graph: for ``inside_edges``.

    Returns:
        PlanQuality: nan where the plan has no batch of two rows.

    Raises:
        ValueError: lengths differ.
    """
    left, right = Matrix(queries, "queries"), Matrix(positives, "positives")
    window, near = np.asarray(window), np.asarray(near)
    if not len(left) == len(right) == len(window) == len(near):
        raise ValueError(
            f"queries, positives, window and near have {len(left)}, {len(right)}, {len(window)} and "
            f"{len(near)} rows: they must have one for each candidate"
        )
    sizes = np.diff(plan.offsets)
    pairs = float((sizes * (sizes - 1)).sum())
    batch_of = np.full(len(left), -1, np.int64)
    batch_of[plan.indices] = np.repeat(np.arange(len(plan)), sizes)
    clusters = None
    if plan.clusters is not None and graph is not None and len(plan.indices) == len(left):
        clusters = np.empty(len(left), np.int64)
        clusters[plan.indices] = plan.clusters
    return PlanQuality(
        similarity=total_similarity(plan, left, right) / pairs if pairs else float("nan"),
        window_neighbours=sum(by_rows(_together, len(left), batch_of, window)) / max(1, len(plan.indices)),
        false_negatives=sum(by_rows(_together, len(left), batch_of, near)) / pairs if pairs else float("nan"),
        inside_edges=float("nan") if graph is None or clusters is None else graph.inside(clusters),
    )


def random_plan(plan: BatchPlan, *, seed: int = 0) -> BatchPlan:
    """The same rows in random order, in batches of the same sizes: what to compare a plan with."""
    rng = np.random.default_rng((seed, 0, 4))
    return BatchPlan(indices=rng.permutation(plan.indices), offsets=plan.offsets)


def total_similarity(plan: BatchPlan, left: Matrix, right: Matrix, rows: int = 65_536) -> float:
    """The sum over batches of ⟨q_i, p_j⟩ for all rows i ≠ j of a batch, about ``rows`` rows at a time."""
    # Over a batch, sum_{i≠j} q_i·p_j = (sum q)·(sum p) - sum q_i·p_i.
    total, start = 0.0, 0
    while start < len(plan):
        stop = max(start + 1, int(np.searchsorted(plan.offsets, plan.offsets[start] + rows, "right")) - 1)
        begin, end = plan.offsets[start], plan.offsets[stop]
        queries, positives = (side.take(plan.indices[begin:end]).astype(np.float64) for side in (left, right))
        cuts = plan.offsets[start:stop] - begin
        sums = (np.add.reduceat(side, cuts) for side in (queries, positives))
        total += float(np.einsum("bd,bd->", *sums) - np.einsum("nd,nd->", queries, positives))
        start = stop
    return total


@compiled(nogil=True)
def _together(begin: Any, end: Any, batch_of: Any, neighbours: Any) -> Any:
    total = 0
    for row in range(begin, end):
        for rank in range(neighbours.shape[1]):
            other = neighbours[row, rank]
            if other >= 0 and batch_of[row] >= 0 and other != row and batch_of[other] == batch_of[row]:
                total += 1
    return total
