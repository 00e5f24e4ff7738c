"""Limits of similarity: near duplicates, and rivals of a row's own positive, are not among its hard negatives.

O(N·D) time; memory is 4 bytes a row, and the embeddings stay where they are: they are referred to, not copied.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.knn.matrix import Matrix

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityLimits:
    """The highest similarity that a negative of each row may have to the row's query.

    Args:
        queries, positives: N rows each, which must stay as they are for as long as negatives are drawn.
        highest: float32[N].
        metric: ``"ip"`` or ``"l2"``, as :class:`B3`'s.
    """

    queries: Matrix
    positives: Matrix
    highest: Float32
    metric: str

    def drop(self, window: npt.NDArray[Any], scores: Float32, rows: Any) -> npt.NDArray[Any]:
        """int[R, m], the window with -1 where a score exceeds its row's limit.

        Args:
            window: int[R, m].
            scores: float32[R, m], the similarity of each.
            rows: int64[R] or a slice, which of the N rows these are.
        """
        return np.where(scores > self.highest[rows][:, None], np.array(-1, window.dtype), window)


def similarity_limits(
    queries: Any,
    positives: Any,
    *,
    metric: str = "ip",
    similarity_ceiling: float | None = None,
    positive_margin: float | None = None,
    block: int = 65_536,
) -> SimilarityLimits | None:
    """Limits of every row, from its similarity to its own positive; None where nothing is limited.

    Args:
        queries, positives: [N, D] embeddings; row i of each is a pair.
        metric, similarity_ceiling, positive_margin: as :class:`B3`'s.
        block: rows read at a time.

    Raises:
        ValueError: the embeddings differ in their width.
    """
    if similarity_ceiling is None and positive_margin is None:
        return None
    left, right = Matrix(queries, "queries"), Matrix(positives, "positives")
    if left.width != right.width:
        raise ValueError(f"queries have {left.width} columns, but positives have {right.width}")
    ceiling = np.inf if similarity_ceiling is None else similarity_ceiling
    highest = np.full(len(left), ceiling, np.float32)
    if positive_margin is not None:
        for start in range(0, len(left), block):
            part = left.read(start, start + block)
            own = right.score_pairs(part, np.arange(start, start + len(part))[:, None], l2=metric == "l2")[:, 0]
            within = slice(start, start + len(part))
            highest[within] = np.minimum(highest[within], margin_limit(own, positive_margin))
    return SimilarityLimits(queries=left, positives=right, highest=highest, metric=metric)


def margin_limit(own: Float32, margin: float) -> Float32:
    """float32[N], s - (1 - margin)·|s|: below s by a share of its size for ``margin`` < 1, whatever its sign.

    Args:
        own: float32[N], s, the similarity of each query to its own positive.
        margin: above 0.
    """
    # A product of s, so that it is margin·s to the last bit where s is not negative.
    return own * np.where(own < 0, np.float32(2 - margin), np.float32(margin))
