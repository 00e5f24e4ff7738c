"""Finish of a run: from decisions to a whole dataset folder, ready to be renamed into place.

Its tasks run on the cluster, so that what they read of each row is not in the driver's memory.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.dataset import Dataset
from curation.dataset.manifest import (
    BAD_ROW,
    BATCHES,
    DECISIONS,
    KEPT,
    QUARANTINE,
    FileRecord,
    Manifest,
    StepRecord,
    now,
    versions,
)
from curation.dataset.writer import shard_schema, write_dataset_files, write_manifest
from curation.files import atomic
from curation.pipelines.engine.ray import run_one
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.output.shards import Shard, write_decisions
from curation.recipe import Output, Recipe
from curation.report import write_report
from curation.sources.base import Block, InputRecord, Source


@dataclass(frozen=True)
class Keep:
    """Write the kept positions, in source order, to ``path``."""

    reason: Path
    path: Path

    def __call__(self) -> None:
        save(self.path, np.flatnonzero(np.load(self.reason, mmap_mode="r") == 0))


def cut_shards(stage: Stage, reason: Path, output: Output) -> tuple[Path, list[Shard]]:
    """Write the kept positions to ``kept.npy`` and cut them into shards."""
    kept = stage.folder / "kept.npy"
    if not kept.exists():
        run_one(Keep(reason, kept), resources=output.resources)
    rows, rows_per_shard = len(np.load(kept, mmap_mode="r")), output.rows_per_shard
    starts = range(0, rows, rows_per_shard)
    return kept, [Shard(number, start, min(rows_per_shard, rows - start)) for number, start in enumerate(starts)]


@dataclass(frozen=True)
class FinishDataset:
    """Write everything but the shards, which are there: decisions, quarantine, report, manifest."""

    dataset: Path
    recipe: Recipe
    source: Source
    blocks: Sequence[Block]
    scores: dict[str, Stage]
    reason: Path
    reasons: Sequence[str]
    pick: Path | None
    duplicates: Sequence[Path]
    bad_stages: Sequence[Stage]
    shard_stage: Stage
    shards: Sequence[Shard]
    plan: Path | None
    inputs: list[InputRecord]
    steps: list[StepRecord]
    seconds: dict[str, float]

    def __call__(self) -> None:
        files = _shard_records(self.shard_stage, self.shards)
        write_decisions(
            self.dataset / DECISIONS,
            self.blocks,
            self.scores,
            self.reason,
            (KEPT, BAD_ROW, *self.reasons),
            self.pick,
            self.duplicates,
        )
        if self.plan is not None:
            with atomic(self.dataset / BATCHES) as path:
                shutil.copyfile(self.plan, path)
        bad = _write_quarantine(self.bad_stages, self.dataset / QUARANTINE)
        digest = self.recipe.sha256()
        write_dataset_files(self.dataset, shard_schema(self.source.schema, list(self.scores)), list(files), digest[:16])
        rows = sum(block.rows for block in self.blocks)
        manifest = Manifest(
            recipe=self.recipe.model_dump(mode="json"),
            recipe_sha256=digest,
            seed=self.recipe.seed,
            inputs=self.inputs,
            notes=list(self.source.notes),
            rows_in=rows,
            rows_out=sum(shard.rows for shard in self.shards),
            bad_rows=bad,
            steps=self.steps,
            files=files,
            versions=versions(),
            seconds=self.seconds,
            created=now(),
        )
        write_report(Dataset(self.dataset, manifest=manifest, source=self.source))
        write_manifest(self.dataset, manifest, {DECISIONS: rows, QUARANTINE: bad})


def _shard_records(stage: Stage, shards: Sequence[Shard]) -> dict[str, FileRecord]:
    files: dict[str, FileRecord] = {}
    for shard in shards:
        record = json.loads(stage.piece(shard.number, "json").read_text(encoding="utf-8"))
        files.update({name: FileRecord.model_validate(values) for name, values in record.items()})
    return files


def _write_quarantine(stages: Sequence[Stage], path: Path) -> int:
    """Gather the bad rows of all stages; no file where there are none. Returns how many there are."""
    pieces = [piece for stage in stages for piece in sorted(stage.folder.glob("[0-9]*.jsonl"))]
    pieces = [piece for piece in pieces if piece.stat().st_size]
    if not pieces:
        return 0
    rows = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for piece in pieces:
            lines = piece.read_text(encoding="utf-8").splitlines(keepends=True)
            file.writelines(lines)
            rows += len(lines)
    return rows
