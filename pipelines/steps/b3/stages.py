"""Stages of a ``b3`` step: vectors, matrices, search, ranks, cells where there are too many rows, and the plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.pipelines.engine.ray import run_one
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.b3.columns import CopyVectors, vector_width
from curation.pipelines.steps.b3.plan import Cell, CutCell, Group, MakeCells
from curation.pipelines.steps.b3.search import Merge, Search, search_pieces
from curation.pipelines.steps.b3.vectors import Allocate, Foresee, Gather, KeepApart, Layout
from curation.pipelines.steps.base import MarkBad, Outcome, StepRun

if TYPE_CHECKING:
    from curation.pipelines.steps.b3 import MineB3

AFTER_THE_SEARCH = (
    *("batch_size", "cluster_size", "edges", "partitioner", "repulsion"),
    *("negatives", "last", "surplus", "cell_rows"),
)
"""Parameters of the step that its search, by far the longest part, does not depend on."""
OF_THE_SEARCH = ("metric", "engine", "part_rows", "ranks", "similarity_ceiling", "positive_margin")


def run_stages(step: "MineB3", run: StepRun) -> Outcome:
    """Bring a step to its end."""
    stages = _Stages(step, run)
    bad = stages.copy_vectors()
    matrices = stages.gather()
    searches = stages.search(matrices)
    cells = stages.cut(matrices)
    stage = run.stage(step.step)
    group = Group(step, run.number, run.code, matrices, searches, cells, stage, stages.reason, run.seed)
    done = run.stages.finish(f"{run.label}: group", stage, lambda: None, group, step.resources)
    spent = [seconds for label, seconds in run.stages.seconds.items() if label.startswith(f"{run.label}:")]
    return Outcome(
        rows_out=done["rows_out"],
        reason=stage.folder / "reason.npy",
        seconds=round(sum(spent), 3),
        dropped=dict(zip(step.reasons, done["dropped"], strict=True)),
        bad_rows=stages.bad_rows,
        details=done["details"],
        bad=bad,
        plan=stage,
    )


class _Stages:
    """The stages of one step, in their order; ``reason`` and ``bad_rows`` follow the vectors that were read."""

    def __init__(self, step: "MineB3", run: StepRun) -> None:
        self.step, self.run = step, run
        self.plain = [name for name in step.pairs if name not in run.vectors]
        self.vectors = dict(run.vectors)
        self.reason: Path = run.reason
        self.bad_rows = 0

    def copy_vectors(self) -> list[Stage]:
        """Read the vectors that stand in the source; the stages with bad rows."""
        if not self.plain:
            return []
        run, label = self.run, f"{self.run.label}: vectors"
        others = (*AFTER_THE_SEARCH, *OF_THE_SEARCH)
        stage = run.stage("b3-vectors", without=others)
        columns = {name: run.stage(f"b3-vectors-{number}", without=others) for number, name in enumerate(self.plain)}

        def each() -> None:
            widths = {name: vector_width(run.source, run.blocks, name) for name in columns}
            task = CopyVectors(run.source, stage, columns, widths, run.reason, run.quarantine)
            run.stages.each(label, stage, task, run.blocks, "jsonl", resources=self.step.resources)

        done = run.stages.finish(label, stage, each, MarkBad(stage, run.reason, run.rows), self.step.resources)
        self.vectors |= columns
        self.reason, self.bad_rows = stage.folder / "reason.npy", done["bad"]
        return [stage]

    def gather(self) -> Stage:
        """Bring the vectors into two matrices, with ids of the rows that must not meet."""
        step, run, label = self.step, self.run, f"{self.run.label}: gather"
        # With the ranks, which the search writes there.
        stage = run.stage("b3-matrices", without=AFTER_THE_SEARCH)
        vectors = {"queries": self.vectors[step.queries], "positives": self.vectors[step.positives]}
        hashed = {"queries": step.queries, "positives": step.positives} if step.duplicates != "ignore" else {}
        # A column of vectors is known by its side: its rows are hashed as they stand in the matrix.
        # Rows of one label may share a batch, so what names labels keeps nothing apart.
        twins = tuple(
            dict.fromkeys(side if name in self.plain else name for side, name in hashed.items() if name != step.labels)
        )
        apart = (() if step.groups is None else (step.groups,)) + twins
        columns = (*apart, *(name for name in (step.labels, step.datasets) if name is not None))

        def each() -> None:
            if not (stage.folder / "layout.json").exists():
                run_one(Allocate(step, stage, vectors, run.blocks, self.reason), resources=step.resources)
            task = Gather(step, run.source, stage, vectors, columns, self.reason)
            run.stages.each(label, stage, task, run.blocks, resources=step.resources)

        run.stages.finish(label, stage, each, KeepApart(step, stage, run.blocks, len(apart)), step.resources)
        # Each time: what it looks at may have been edited since the matrices were made.
        run_one(Foresee(step, stage), resources=step.resources)
        return stage

    def search(self, matrices: Stage) -> Stage:
        """Rank the neighbours of all rows; the searches, and what they say of themselves."""
        step, run = self.step, self.run
        searches, ranks = (run.stage(name, without=AFTER_THE_SEARCH) for name in ("b3-search", "b3-ranks"))
        pieces, chunks = search_pieces(step, Layout.load(matrices.folder), run.block_rows)
        merge = Merge(step, matrices, searches, ranks, len(pieces) // len(chunks))
        self._all("search", searches, Search(step, matrices, searches, run.seed), pieces, "arrow")
        self._all("rank", ranks, merge, chunks, "npy")
        for piece in pieces:
            searches.piece(piece.number, "arrow").unlink(missing_ok=True)
        return searches

    def cut(self, matrices: Stage) -> Stage | None:
        """Communities of each cell, where the rows are too many for one task."""
        step, run = self.step, self.run
        if Layout.load(matrices.folder).rows <= step.cell_rows:
            return None
        stage, label = run.stage("b3-cells"), f"{run.label}: cut"

        def each() -> None:
            sizes = stage.folder / "cells.json"
            if not sizes.exists():
                run_one(MakeCells(step, matrices, stage, run.seed), resources=step.resources)
            cells = [Cell(*entry) for entry in enumerate(json.loads(sizes.read_text(encoding="utf-8")))]
            run.stages.each(label, stage, CutCell(step, matrices, stage, run.seed), cells, resources=step.resources)

        run.stages.finish(label, stage, each)
        return stage

    def _all(self, name: str, stage: Stage, task: Any, pieces: Sequence[Any], suffix: str) -> None:
        label, resources = f"{self.run.label}: {name}", self.step.resources
        self.run.stages.finish(
            label, stage, lambda: self.run.stages.each(label, stage, task, pieces, suffix, resources=resources)
        )
