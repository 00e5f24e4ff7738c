"""Plan of B3 on a cluster: communities, batches, and the order of the rows.

Everything is one task of some (20 + 9·m)·M bytes for m ranks of M rows. Where M exceeds ``cell_rows``, rows are
first sorted into cells of similar ones (k-means, each of bounded size) and each cell's part of the graph is cut by
a task of its own: memory is that of a cell, and edges between cells are lost.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curation.errors import StepError
from curation.files import write_text
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.b3.search import budget
from curation.pipelines.steps.b3.vectors import Layout
from curation.plan import BatchPlan
from curation.selectors.b3 import B3, Grouping
from curation.selectors.b3.communities import Communities, join_cells
from curation.selectors.b3.limits import similarity_limits
from curation.selectors.b3.quality import plan_quality, random_plan
from curation.selectors.b3.ranking import RankWindow, by_dataset, join_metadata
from curation.selectors.b3.ranks import rank_widths

if TYPE_CHECKING:
    from curation.pipelines.steps.b3 import MineB3

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """Rows of a graph too large for one task that are cut together."""

    number: int
    rows: int


@dataclass(frozen=True)
class MakeCells:
    """Sort rows into cells of at most ``cell_rows`` around centres of k-means, within their data sets."""

    step: "MineB3"
    matrices: Stage
    stage: Stage
    seed: int

    def __call__(self) -> None:
        layout = Layout.load(self.matrices.folder)
        positives, datasets = layout.array("positives"), layout.ids("datasets")
        cells = np.empty(layout.rows, np.int32)
        first = 0
        for rows in by_dataset(datasets, layout.rows):
            count = -(-len(rows) // self.step.cell_rows)
            cells[rows] = first + k_means_cells(positives, rows, count, self.step.cell_rows, self.seed)
            first += count
        # A centre may be nobody's nearest.
        cells = np.unique(cells, return_inverse=True)[1].astype(np.int32)
        save(self.stage.folder / "cells.npy", cells)
        write_text(self.stage.folder / "cells.json", json.dumps(np.bincount(cells).tolist()))


def k_means_cells(vectors: npt.NDArray[np.float32], rows: Int64, count: int, room: int, seed: int) -> Int64:
    """int64[len(rows)], cells 0..count-1 of at most ``room`` rows: the nearest centre that is not full.

    Args:
        vectors: float32[N, D].
        rows: int64, which of them, rising.
        count: k; ``count · room`` must be at least ``len(rows)``.
        room: most rows of a cell.
        seed: of the sample and of k-means.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    cells = np.full(len(rows), -1 if count > 1 else 0, np.int64)
    if count == 1:
        return cells
    sample = np.sort(np.random.default_rng((seed, 6)).permutation(rows)[: 256 * count])
    with threadpool_limits(1):
        model = KMeans(count, n_init=1, random_state=seed % 2**32).fit(np.asarray(vectors[sample]))
        distance = np.empty((len(rows), count), np.float32)
        for start in range(0, len(rows), 65_536):
            distance[start : start + 65_536] = model.transform(np.asarray(vectors[rows[start : start + 65_536]]))
    choice = np.argsort(distance, axis=1, kind="stable")
    free = np.full(count, room)
    for rank in range(count):
        for cell in range(count):
            wanting = np.flatnonzero((cells < 0) & (choice[:, rank] == cell))
            taken = wanting[np.argsort(distance[wanting, cell], kind="stable")][: free[cell]]
            cells[taken] = cell
            free[cell] -= len(taken)
    return cells


@dataclass(frozen=True)
class CutCell:
    """Cut one cell's part of the graph into communities."""

    step: "MineB3"
    matrices: Stage
    stage: Stage
    seed: int

    def __call__(self, cell: Cell) -> None:
        layout = Layout.load(self.matrices.folder)
        rows = np.flatnonzero(np.load(self.stage.folder / "cells.npy", mmap_mode="r") == cell.number)
        names = np.full(layout.rows + 1, -1, np.int32)
        names[rows] = np.arange(len(rows))
        window = names[layout.array("window")[rows]]
        apart = layout.ids("apart")
        columns = None if apart is None else apart[:, rows]
        near = names[_near(layout)[rows]] if self.step.repulsion else np.empty((len(rows), 0), np.int32)
        ranking = RankWindow(near=near, window=window)
        communities = b3_of(self.step).communities(ranking, apart=columns, seed=self.seed)
        write_text(self.stage.piece(cell.number, "json"), json.dumps({"edges": communities.graph.edges}))
        save(self.stage.piece(cell.number), communities.clusters)


@dataclass(frozen=True)
class Group:
    """The last of it: communities, batches, which rows stay, and in which order."""

    step: "MineB3"
    number: int
    code: int
    matrices: Stage
    searches: Stage
    cells: Stage | None
    stage: Stage
    reason: Path
    seed: int

    def __call__(self) -> None:
        layout = Layout.load(self.matrices.folder)
        near, window = _near(layout), layout.array("window")
        metadata = join_metadata(
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.searches.folder.glob("[0-9]*.json"))
        )
        b3 = b3_of(self.step)
        queries, positives = layout.array("queries"), layout.array("positives")
        limits = similarity_limits(
            queries, positives, metric=b3.metric, similarity_ceiling=b3.similarity_ceiling,
            positive_margin=b3.positive_margin,
        ) if b3.negatives else None  # fmt: skip
        ranking = RankWindow(near=near, window=window, labels=layout.ids("labels"), limits=limits, metadata=metadata)
        apart, datasets = layout.ids("apart"), layout.ids("datasets")
        try:
            if self.cells is None:
                communities = b3.communities(ranking, apart=apart, datasets=datasets, seed=self.seed)
            else:
                communities = self._from_cells(ranking, apart, datasets)
            grouping = b3.grouping(communities, seed=self.seed)
        except ValueError as error:
            raise StepError(f"step {self.number} (b3): {error}") from error
        plan = grouping.plan
        if len(plan) == 0:
            raise StepError(
                f"step {self.number} (b3) keeps none of {layout.rows} rows: they do not fill a batch of "
                f"{self.step.batch_size} that may share one. Lower `batch_size`, or set `last: keep`"
            )
        graph = communities.graph if self.cells is None else None
        measured = {
            name: plan_quality(each, queries, positives, window=window, near=near, graph=graph).as_dict()
            for name, each in (("plan", plan), ("random", random_plan(plan, seed=self.seed)))
        }
        if graph is not None:
            # Of the communities as they were cut: the plan may leave rows out.
            measured["plan"]["inside_edges"] = graph.inside(communities.clusters)
        self._lay_out(grouping, layout.rows)
        details = {
            **communities.metadata,
            "cells": 1 if self.cells is None else len(json.loads((self.cells.folder / "cells.json").read_text())),
            "batches": len(plan),
            "rows_together": grouping.together,
            "cluster_sizes": _sizes(plan.clusters),
            "batch_sizes": _sizes(np.repeat(np.arange(len(plan)), np.diff(plan.offsets))),
            "quality": {
                name: {key: value if math.isfinite(value) else None for key, value in values.items()}
                for name, values in measured.items()
            },
        }
        dropped = [len(rows) for rows in _left_out(grouping)]
        self.stage.finish({"rows_out": len(plan.indices), "dropped": dropped, "details": details})

    def _from_cells(self, ranking: RankWindow, apart: Int64 | None, datasets: Int64 | None) -> Communities:
        assert self.cells is not None
        cells = np.load(self.cells.folder / "cells.npy")
        numbers = range(int(cells.max()) + 1)
        records = [json.loads(self.cells.piece(cell, "json").read_text(encoding="utf-8")) for cell in numbers]
        return join_cells(
            ranking,
            cells,
            [np.load(self.cells.piece(cell)) for cell in numbers],
            edges=sum(record["edges"] for record in records),
            partitioner=self.step.partitioner,
            apart=apart,
            datasets=datasets,
        )

    def _lay_out(self, grouping: Grouping, rows: int) -> None:
        """Write the plan over the rows of the dataset, the kept positions in its order, and the reasons."""
        plan, reason = grouping.plan, np.load(self.reason)
        inside = np.flatnonzero(reason == 0)
        kept = inside[plan.indices]
        for number, left_out in enumerate(_left_out(grouping)):
            reason[inside[left_out]] = self.code + number
        row_of = np.full(rows + 1, -1, np.int64)
        row_of[plan.indices] = np.arange(len(kept))
        laid_out = BatchPlan(
            indices=np.arange(len(kept)),
            offsets=plan.offsets,
            clusters=plan.clusters,
            negatives=None if plan.negatives is None else row_of[plan.negatives],
            apart=plan.apart,
            datasets=plan.datasets,
            metadata=plan.metadata,
        )
        laid_out.save(self.stage.folder / "batches.arrow")
        save(self.stage.folder / "kept.npy", kept)
        save(self.stage.folder / "reason.npy", reason)


def _left_out(grouping: Grouping) -> tuple[Int64, Int64, Int64]:
    """The rows that are in no batch, in the order of the step's reasons."""
    return grouping.short, grouping.surplus, grouping.alone


def b3_of(step: "MineB3") -> B3:
    """The method with a step's parameters."""
    return B3(
        batch_size=step.batch_size,
        cluster_size=step.cluster_size,
        ranks=step.ranks,
        edges=step.edges,
        partitioner=step.partitioner,
        repulsion=step.repulsion,
        last=step.last,
        surplus=step.surplus,
        negatives=step.negatives,
        similarity_ceiling=step.similarity_ceiling,
        positive_margin=step.positive_margin,
        metric=step.metric,
        engine=step.engine,
        memory_budget=budget(step),
    )


def _near(layout: Layout) -> npt.NDArray[Any]:
    # An empty file cannot be mapped.
    width, _ = rank_widths(layout.array("bounds"))
    return layout.array("near") if width else np.empty((layout.rows, 0), np.int32)


def _sizes(labels: Int64 | None) -> dict[str, int]:
    """How many groups there are of each size, the largest first."""
    if labels is None:
        return {}
    counts = np.bincount(np.bincount(labels))
    return {str(size): int(counts[size]) for size in np.flatnonzero(counts)[::-1].tolist() if size}
