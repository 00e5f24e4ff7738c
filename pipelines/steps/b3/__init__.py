"""The stages of a ``b3`` step: vectors, matrices, search, ranks, cells where there are too many rows, and the plan."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.pipelines.choose import MarkBad
from curation.pipelines.engine.ray import run_one
from curation.pipelines.engine.workspace import Stage, Workspace
from curation.pipelines.requirements import vector_columns
from curation.pipelines.stages import Stages
from curation.pipelines.steps.b3.plan import Cell, CutCell, Group, MakeCells
from curation.pipelines.steps.b3.search import Merge, Search, search_pieces
from curation.pipelines.steps.b3.vectors import Allocate, Gather, KeepApart, Layout
from curation.pipelines.steps.embed import CopyVectors, vector_width
from curation.recipe import MineB3, Recipe
from curation.sources.base import Block, Source


@dataclass
class Grouping:
    """One ``b3`` step of a run.

    Args:
        stages, workspace, source, blocks, recipe: the run's.
        step, number: the step.
        vectors: the stage of each embedded column.
        reason: which rows are still in.
    """

    stages: Stages
    workspace: Workspace
    source: Source
    blocks: Sequence[Block]
    recipe: Recipe
    step: MineB3
    number: int
    vectors: dict[str, Stage]
    reason: Path

    def __call__(self, label: str, stage: Stage) -> dict[str, Any]:
        """Bring the step to its end; returns what its last stage says of itself, with the seconds of all."""
        step, seed = self.step, self.recipe.seed
        matrices = self._matrices(f"{label}: gather")
        searches, ranks = (self.workspace.stage(self.number, name) for name in ("b3-search", "b3-ranks"))
        pieces, chunks = search_pieces(step, Layout.load(matrices.folder), self.recipe.block_rows)
        search, merge = (
            Search(step, matrices, searches, seed),
            Merge(step, matrices, searches, ranks, len(pieces) // len(chunks)),
        )
        self._all(f"{label}: search", searches, search, pieces, "arrow")
        self._all(f"{label}: rank", ranks, merge, chunks, "npy")
        for piece in pieces:
            searches.piece(piece.number, "arrow").unlink(missing_ok=True)
        cells = self._cells(f"{label}: cut", matrices)
        group = Group(step, self.number, matrices, searches, cells, stage, self.reason, seed)
        done = self.stages.finish(f"{label}: group", stage, lambda: None, group, step.resources)
        own = [seconds for name, seconds in self.stages.seconds.items() if name.startswith(f"{label}:")]
        return {**done, "seconds": round(sum(own), 3)}

    def copy_vectors(self, label: str, quarantine: bool) -> tuple[Stage, int] | None:
        """Read the vectors that stand in the source: the stage of its bad rows, and how many they are."""
        names = vector_columns(self.recipe, self.step)
        if not names:
            return None
        stage, before = self.workspace.stage(self.number, "b3-vectors"), self.reason
        columns = {name: self.workspace.stage(self.number, f"b3-vectors-{place}") for place, name in enumerate(names)}

        def each() -> None:
            widths = {name: vector_width(self.source, self.blocks, name) for name in names}
            task = CopyVectors(self.source, stage, columns, widths, before, quarantine)
            self.stages.each(label, stage, task, self.blocks, "jsonl")

        self.vectors.update(columns)
        done = self.stages.finish(label, stage, each, MarkBad(stage, before, sum(block.rows for block in self.blocks)))
        self.reason = stage.folder / "reason.npy"
        return stage, int(done["bad"])

    def _matrices(self, label: str) -> Stage:
        step, plain = self.step, vector_columns(self.recipe, self.step)
        stage = self.workspace.stage(self.number, "b3-matrices")
        vectors = {"queries": self.vectors[step.queries], "positives": self.vectors[step.positives]}
        hashed = {"queries": step.queries, "positives": step.positives} if step.duplicates == "apart" else {}
        # A column of vectors is known by its side: its rows are hashed as they stand in the matrix.
        twins = tuple(dict.fromkeys(side if name in plain else name for side, name in hashed.items()))
        apart = (() if step.groups is None else (step.groups,)) + twins
        columns = apart + (() if step.datasets is None else (step.datasets,))

        def each() -> None:
            if not (stage.folder / "layout.json").exists():
                run_one(Allocate(step, stage, vectors, self.blocks, self.reason), resources=step.resources)
            self.stages.each(label, stage, Gather(self.source, stage, vectors, columns, self.reason), self.blocks)

        self.stages.finish(label, stage, each, KeepApart(stage, self.blocks, len(columns), len(apart)))
        return stage

    def _cells(self, label: str, matrices: Stage) -> Stage | None:
        """Communities of each cell, where the rows are too many for one task."""
        step, seed = self.step, self.recipe.seed
        if Layout.load(matrices.folder).rows <= step.cell_rows:
            return None
        stage = self.workspace.stage(self.number, "b3-cells")

        def each() -> None:
            sizes = stage.folder / "cells.json"
            if not sizes.exists():
                run_one(MakeCells(step, matrices, stage, seed), resources=step.resources)
            cells = [Cell(*entry) for entry in enumerate(json.loads(sizes.read_text(encoding="utf-8")))]
            self.stages.each(label, stage, CutCell(step, matrices, stage, seed), cells, resources=step.resources)

        self.stages.finish(label, stage, each)
        return stage

    def _all(self, label: str, stage: Stage, task: Any, pieces: Sequence[Any], suffix: str) -> None:
        self.stages.finish(
            label, stage, lambda: self.stages.each(label, stage, task, pieces, suffix, resources=self.step.resources)
        )
