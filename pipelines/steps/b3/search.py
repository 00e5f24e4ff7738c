"""Search of B3 on a cluster: the ranks that :meth:`curation.B3.plan` finds in memory, for any number of workers.

The search over the matrices of :mod:`curation.pipelines.steps.b3.vectors` is cut into (query block, part of the
database): each task keeps the best ranks of its part, and these are merged exactly, ties by index, into ``near.npy``
and ``window.npy``. Every task leaves a file: a search that was killed goes on; one whose worker died is done again.

Memory of a search task: the search's tiles, and ``part_rows``·4·D bytes where the engine copies them into an index;
what is mapped counts besides, while there is room. :mod:`curation.pipelines.steps.b3.plan` goes on from there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curation.arrow import load_matrix, save_matrices
from curation.files import write_text
from curation.gpu.knn import APPROXIMATE, knn
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.b3.vectors import Layout
from curation.selectors.b3.conflicts import conflict_pairs
from curation.selectors.b3.limits import similarity_limits
from curation.selectors.b3.ranking import join_metadata, search_metadata
from curation.selectors.b3.ranks import cut_ranks, rank_widths

if TYPE_CHECKING:
    from curation.pipelines.steps.b3 import MineB3

Int64 = npt.NDArray[np.int64]

# These copy their part of the database to where they search, or index it.
PREPARING = (*APPROXIMATE, "torch-cuda", "faiss-gpu")
INDEXED_QUERIES = 1_000_000


@dataclass(frozen=True)
class SearchPiece:
    """Queries ``start`` to ``stop`` against database rows ``low`` to ``high``."""

    number: int
    start: int
    stop: int
    low: int = 0
    high: int = 0

    @property
    def rows(self) -> int:
        """Queries."""
        return self.stop - self.start


def search_pieces(step: "MineB3", layout: Layout, block_rows: int) -> tuple[list[SearchPiece], list[SearchPiece]]:
    """The searches, and the query blocks that their results are merged in: piece ``block·parts + part``."""
    # What a task must do before its first query is shared by many.
    chunk = max(block_rows, INDEXED_QUERIES) if layout.engine in PREPARING else block_rows
    parts = [(low, min(low + step.part_rows, layout.rows)) for low in range(0, layout.rows, step.part_rows)]
    chunks = [
        SearchPiece(number, start, min(start + chunk, layout.rows))
        for number, start in enumerate(range(0, layout.rows, chunk))
    ]
    pieces = [
        SearchPiece(piece.number * len(parts) + part, piece.start, piece.stop, low, high)
        for piece in chunks
        for part, (low, high) in enumerate(parts)
    ]
    return pieces, chunks


@dataclass(frozen=True)
class Search:
    """The best ranks of some queries in one part of the database.

    They are written as ``row`` int64[queries, ranks], -1 for none, and ``score`` float32[queries, ranks].
    """

    step: "MineB3"
    matrices: Stage
    stage: Stage
    seed: int

    def __call__(self, piece: SearchPiece) -> None:
        layout = Layout.load(self.matrices.folder)
        queries = layout.array("queries")[piece.start : piece.stop]
        database = layout.array("positives")[piece.low : piece.high]
        apart, labels, datasets = (layout.ids(name) for name in ("apart", "labels", "datasets"))
        unlike = [*conflict_pairs(apart), *(() if labels is None else [(labels, labels)])]
        ends = layout.array("bounds")[piece.start : piece.stop, 1]
        rows = np.full((piece.rows, int(ends.max())), -1, np.int64)
        scores = np.full(rows.shape, -np.inf, np.float32)
        records = []
        for queried, searched in _pairs(piece, datasets):
            count = int(ends[queried].max())
            if count == 0:
                continue
            itself = piece.start + queried - piece.low
            position = np.minimum(np.searchsorted(searched, itself), len(searched) - 1)
            neighbours = knn(
                queries if datasets is None else queries[queried],
                database if datasets is None else database[searched],
                count=count,
                metric=self.step.metric,
                exclude=np.where(searched[position] == itself, position, -1),
                exclude_same=[(mine[piece.start + queried], theirs[piece.low + searched]) for mine, theirs in unlike],
                engine=layout.engine,
                memory_budget=budget(self.step),
                seed=self.seed,
            )
            inside = neighbours.indices >= 0
            rows[queried, :count] = np.where(inside, piece.low + searched[np.maximum(neighbours.indices, 0)], -1)
            scores[queried, :count] = neighbours.scores
            records.append(search_metadata(neighbours))
        write_text(self.stage.piece(piece.number, "json"), json.dumps(join_metadata(records)))
        save_matrices(self.stage.piece(piece.number, "arrow"), {"row": rows, "score": scores})


@dataclass(frozen=True)
class Merge:
    """Merge the parts' ranks of one query block, cut them in two, and leave out what is too similar."""

    step: "MineB3"
    matrices: Stage
    searches: Stage
    stage: Stage
    parts: int

    def __call__(self, piece: SearchPiece) -> None:
        layout = Layout.load(self.matrices.folder)
        numbers = range(piece.number * self.parts, (piece.number + 1) * self.parts)
        files = [self.searches.piece(number, "arrow") for number in numbers]
        rows, scores = (
            np.concatenate([load_matrix(file, name) for file in files], axis=1) for name in ("row", "score")
        )
        bounds = layout.array("bounds")[piece.start : piece.stop]
        order = np.lexsort((np.where(rows < 0, layout.rows, rows), -scores))[:, : int(bounds[:, 1].max())]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        near, window, scores = cut_ranks(rows, scores, bounds, rank_widths(layout.array("bounds")))
        limits = similarity_limits(
            *(layout.array(side)[piece.start : piece.stop] for side in ("queries", "positives")),
            metric=self.step.metric,
            similarity_ceiling=self.step.similarity_ceiling,
            positive_margin=self.step.positive_margin,
        )
        if limits is not None:
            window = limits.drop(window, scores, slice(None))
        for name, values in (("near", near), ("window", window)):
            if values.shape[1]:
                layout.put(name, piece.start, values)
        save(self.stage.piece(piece.number), np.array([piece.rows]))


def budget(step: "MineB3") -> int:
    """Bytes for a search's tiles."""
    memory = step.resources.memory_mib
    return 1 << 30 if memory is None else max(1 << 20, (memory << 20) // 2)


def _pairs(piece: SearchPiece, datasets: Int64 | None) -> Iterator[tuple[Int64, Int64]]:
    # Which of the queries may meet which of the part's rows.
    if datasets is None:
        yield np.arange(piece.rows), np.arange(piece.high - piece.low)
        return
    query_sets, row_sets = datasets[piece.start : piece.stop], datasets[piece.low : piece.high]
    for dataset in np.intersect1d(query_sets, row_sets).tolist():
        yield np.flatnonzero(query_sets == dataset), np.flatnonzero(row_sets == dataset)
