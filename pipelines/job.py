"""From a recipe to a curated dataset on disk: atomic, resumable, deterministic.

A run is a chain of stages in ``OUT.partial`` (:mod:`curation.pipelines.engine.workspace`). A stage leaves a file for
each block of rows, or one file for all; whatever is there when a run starts is not done again. Blocks are cut by
position and randomness is keyed by seed and step, so the result does not depend on who did what, or when.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curation.dataset.manifest import BAD_ROW, BATCHES, DECISIONS, MANIFEST, Manifest, StepRecord
from curation.errors import OutputError, SourceError
from curation.pipelines.blocks import (
    Alignment,
    BlockScore,
    Check,
    ColumnScore,
    FunctionScore,
    GroupBlock,
    HashBlock,
    ScoreBlock,
    StoredScore,
)
from curation.pipelines.choose import Choose, DropDuplicates, MarkBad, describe
from curation.pipelines.engine.ray import gpus, run_one, runtime
from curation.pipelines.engine.workspace import Stage, Workspace
from curation.pipelines.output.finish import FinishDataset, cut_shards
from curation.pipelines.output.ordered import JoinShard, Places, Scatter, cut_by_batches
from curation.pipelines.output.shards import Shard, WriteShard
from curation.pipelines.requirements import check_columns, import_path
from curation.pipelines.reselect import recut
from curation.pipelines.stages import Stages
from curation.pipelines.steps.embed import EmbedBlock, FitTfidf
from curation.pipelines.steps.teachers import MODEL
from curation.progress import Progress, Silent
from curation.recipe import Acquire, Align, Dedup, Embed, MineB3, Recipe, Resources, Score, Step
from curation.selectors.zipfit import ZipFit
from curation.sources import open_source
from curation.sources.base import InputRecord, Source

CHECK = "check rows"


def run(
    recipe: Recipe,
    out: Path,
    *,
    ray_address: str | None = None,
    workers: int | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Run a recipe and put the curated dataset at ``out``.

    Killed at any moment and called again it goes on, and its shards are byte-identical to an undisturbed run's.
    Where ``out`` already holds the result of this recipe on these inputs, nothing is done.

    Args:
        recipe: what to do.
        out: the dataset's folder; ``out`` + ``.partial`` beside it holds the unfinished run.
        ray_address: a Ray cluster (also by ``RAY_ADDRESS``); it must see ``out`` and the inputs under the same paths.
        workers: the most tasks at a time, and the CPUs of a local runtime.
        restart: drop what an interrupted run had finished.
        progress: told what is going on.

    Returns:
        The manifest, as it stands in ``out/manifest.json``.

    Raises:
        CurationError: see :mod:`curation.errors`; nothing is at ``out`` then, and what was finished is kept.
    """
    return _Run(recipe, out, ray_address, workers, restart, progress or Silent(), None)()


def reselect(
    done: Path,
    out: Path,
    *,
    count: int | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    beta: float | None = None,
    seed: int | None = None,
    ray_address: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Cut a finished dataset anew: its last ``acquire`` step with other parameters, on the stored scores.

    Args:
        done: the finished dataset.
        out: where the new one goes.
        count: how many rows to keep; at most one of ``count``, ``fraction`` and ``threshold``.
        fraction: how much of what reaches the step to keep.
        threshold: keep scores at or above it.
        kind: another way to draw; None keeps the old one, as for ``beta`` and ``seed``.
        beta: another coldness.
        seed: another seed.
        ray_address: as for :func:`run`, like ``workers`` and ``progress``.
        workers: see there.
        progress: see there.

    Returns:
        The new manifest.

    Raises:
        RecipeError: the recipe has no ``acquire`` step, or the parameters do not fit together.
        SourceError: ``done`` is not a finished dataset, or an input changed since it was made.
    """
    manifest = Manifest.load(done)
    recipe = recut(done, manifest, count=count, fraction=fraction, threshold=threshold, kind=kind, beta=beta, seed=seed)
    return _Run(recipe, out, ray_address, workers, False, progress or Silent(), (done, manifest))()


class _Run:
    """One call of :func:`run`: what is known so far, and the stages."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        ray_address: str | None,
        workers: int | None,
        restart: bool,
        progress: Progress,
        stored: tuple[Path, Manifest] | None,
    ) -> None:
        self.recipe = recipe
        self.quarantine = recipe.on_bad_row == "quarantine"
        self.out = out.absolute()
        self.ray_address = ray_address
        self.workers = workers
        self.restart = restart
        self.progress = progress
        self.stages = Stages(progress, workers)
        self.stored = stored
        self.workspace = Workspace(self.out)
        self.scores: dict[str, Stage] = {}
        self.duplicates: list[Path] = []
        self.bad_stages: list[Stage] = []
        self.records: list[StepRecord] = []
        self.pick: Path | None = None
        self.vectors: dict[str, Stage] = {}
        self.plan: Stage | None = None

    def __call__(self) -> Manifest:
        self.source: Source = open_source(self.recipe.source)
        texts, numbers = check_columns(self.recipe, self.source.schema)
        inputs = self.source.inputs()
        finished = self._already_there(inputs)
        if finished is not None:
            return finished
        with self.workspace.held(), runtime(self.ray_address, self.workers):
            self.workspace.identify(self._identity(inputs), restart=self.restart)
            self.blocks = self.source.blocks(self.recipe.block_rows)
            self.rows = sum(block.rows for block in self.blocks)
            if self.rows == 0:
                raise SourceError(f"the source has no rows: {', '.join(record.path for record in inputs)}")
            rows = self._check_rows(texts, numbers)
            for number, step in enumerate(self.recipe.steps, 1):
                rows = self._step(number, step, rows)
            manifest = self._write(inputs)
            self.workspace.publish()
        return manifest

    def _already_there(self, inputs: list[InputRecord]) -> Manifest | None:
        """The manifest at ``out``, where that is this very run's result.

        Raises:
            SourceError: the stored scores are of other inputs.
            OutputError: something else is there.
        """
        if self.stored is not None and self.stored[1].inputs != inputs:
            raise SourceError(f"an input of {self.stored[0]} changed since it was made: run the recipe again instead")
        if not self.out.exists():
            return None
        if (self.out / MANIFEST).exists():
            manifest = Manifest.load(self.out)
            if manifest.recipe_sha256 != self.recipe.sha256() or manifest.inputs != inputs:
                raise OutputError(
                    f"{self.out} holds the result of another recipe, or of other inputs: give another output folder, "
                    "or remove this one"
                )
            if self.workspace.folder.exists():
                with self.workspace.held():
                    self.workspace.discard()
            self.progress.note(f"{self.out} already holds the result of this recipe on these inputs")
            return manifest
        if self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()
            return None
        raise OutputError(f"{self.out} exists and is no curated dataset: give another output folder")

    def _identity(self, inputs: list[InputRecord]) -> dict[str, Any]:
        return {
            "recipe": self.recipe.sha256(),
            "input": [record.model_dump() for record in inputs],
            "version": version("curation"),
            "stored scores": None if self.stored is None else str(self.stored[0].absolute()),
        }

    def _check_rows(self, texts: frozenset[str], numbers: frozenset[str]) -> int:
        stage = self.workspace.stage(0, "check")
        check = Check(self.source, stage, texts, numbers, self.quarantine)
        done = self.stages.finish(
            CHECK,
            stage,
            lambda: self.stages.each(CHECK, stage, check, self.blocks, "jsonl"),
            MarkBad(stage, None, self.rows),
        )
        self.reason = stage.folder / "reason.npy"
        self.bad_stages.append(stage)
        return int(done["rows_out"])

    def _step(self, number: int, step: Step, rows_in: int) -> int:
        """Bring one step to its end; returns how many rows are left."""
        stage = self.workspace.stage(number, step.step)
        label = f"{number}. {step.step}"
        match step:
            case Align() | Score():
                done = self._score(label, stage, step)
                dropped = {BAD_ROW: done["bad"]}
            case Dedup():
                done = self._dedup(label, stage, step, number)
                dropped = {describe(step, number): rows_in - done["rows_out"]}
            case Acquire():
                done = self._acquire(label, stage, step, number)
                dropped = {describe(step, number): rows_in - done["rows_out"]}
            case Embed():
                done = self._embed(label, stage, step, number)
                dropped = {BAD_ROW: done["bad"]}
            case MineB3():
                done, bad = self._b3(label, stage, step, number)
                dropped = {BAD_ROW: bad, describe(step, number): rows_in - bad - done["rows_out"]}
        self.reason = stage.folder / "reason.npy"
        self.records.append(
            StepRecord(
                number=number,
                step=step.step,
                rows_in=rows_in,
                rows_out=done["rows_out"],
                dropped={reason: count for reason, count in dropped.items() if count},
                seconds=done["seconds"],
                details=done.get("details", {}),
            )
        )
        return int(done["rows_out"])

    def _score(self, label: str, stage: Stage, step: Align | Score) -> dict[str, Any]:
        before = self.reason

        def each() -> None:
            columns, score = self._scorer(step)
            task = ScoreBlock(self.source, stage, before, columns, score, self.quarantine)
            self.stages.each(label, stage, task, self.blocks, resources=step.resources)

        self.scores[step.name] = stage
        self.bad_stages.append(stage)
        return self.stages.finish(label, stage, each, MarkBad(stage, before, self.rows))

    def _scorer(self, step: Align | Score) -> tuple[tuple[str, ...] | None, BlockScore]:
        """The columns that a score reads, and the score."""
        if self.stored is not None:
            return (), StoredScore(self.stored[0].absolute() / DECISIONS, step.name, self.reason)
        if isinstance(step, Align):
            targets = _texts(open_source(step.targets), step.target_column)
            threads = max(1, int(step.resources.cpus))
            zipfit = ZipFit(targets=targets, codec=step.codec, level=step.level, threads=threads)
            return (step.column,), Alignment(zipfit, step.column)
        if step.column is not None:
            return (step.column,), ColumnScore(step.column)
        assert step.function is not None
        return None, FunctionScore(step.function, step.parameters, import_path())

    def _dedup(self, label: str, stage: Stage, step: Dedup, number: int) -> dict[str, Any]:
        hashing = HashBlock(self.source, stage, step.column)
        self.duplicates.append(stage.folder / "duplicates.npy")
        return self.stages.finish(
            label,
            stage,
            lambda: self.stages.each(label, stage, hashing, self.blocks, resources=step.resources),
            DropDuplicates(stage, self.reason, number + 1, self.blocks),
        )

    def _acquire(self, label: str, stage: Stage, step: Acquire, number: int) -> dict[str, Any]:
        name = step.score or next(reversed(self.scores))
        choose = Choose(step, number, self.recipe.seed, stage, name, self.scores[name], self.reason, self.blocks)
        grouping = None if step.per is None else GroupBlock(self.source, stage, step.per)

        def groups() -> None:
            if grouping is not None:
                self.stages.each(label, stage, grouping, self.blocks, "arrow", resources=step.resources)

        self.pick = stage.folder / "pick.npy"
        return self.stages.finish(label, stage, groups, choose)

    def _embed(self, label: str, stage: Stage, step: Embed, number: int) -> dict[str, Any]:
        columns = {name: self.workspace.stage(number, f"embed-{place}") for place, name in enumerate(step.columns)}
        before = self.reason

        def each() -> None:
            if step.teacher == "tfidf" and not (stage.folder / "components.npy").exists():
                run_one(FitTfidf(self.source, self.blocks, stage, before, step, self.recipe.seed))
            resources = step.resources
            if step.teacher.startswith(MODEL) and "resources" not in step.model_fields_set and gpus():
                resources = Resources(gpus=1)
            task = EmbedBlock(self.source, stage, columns, before, step, self.quarantine, import_path())
            # A model is worth a process of its own; to load the tfidf teacher takes less than to start one.
            actors = step.teacher != "tfidf"
            self.stages.each(label, stage, task, self.blocks, "jsonl", resources=resources, actors=actors)

        self.vectors.update(columns)
        self.bad_stages.append(stage)
        return self.stages.finish(label, stage, each, MarkBad(stage, before, self.rows))

    def _b3(self, label: str, stage: Stage, step: MineB3, number: int) -> tuple[dict[str, Any], int]:
        # Here, so that only recipes that need torch wait for it.
        from curation.pipelines.steps.b3 import Grouping

        grouping = Grouping(
            self.stages,
            self.workspace,
            self.source,
            self.blocks,
            self.recipe,
            step,
            number,
            self.vectors,
            self.reason,
        )
        copied = grouping.copy_vectors(f"{label}: vectors", self.quarantine)
        if copied is not None:
            self.bad_stages.append(copied[0])
        self.plan = stage
        return grouping(label, stage), 0 if copied is None else copied[1]

    def _write(self, inputs: list[InputRecord]) -> Manifest:
        start = time.perf_counter()
        stage = self.workspace.stage(len(self.recipe.steps) + 1, "write")
        dataset = self.workspace.dataset
        if self.plan is None:
            kept, shards = cut_shards(stage, self.reason, self.recipe.output.rows_per_shard)
            task = WriteShard(self.source, self.blocks, kept, self.scores, stage, dataset, len(shards))
            self.stages.each("write shards", stage, task, shards, "json")
        else:
            shards = self._write_in_order(self.plan, stage, dataset)
        self.stages.seconds["write shards"] = round(time.perf_counter() - start, 3)
        finish = FinishDataset(
            dataset,
            recipe=self.recipe,
            source=self.source,
            blocks=self.blocks,
            scores=self.scores,
            reason=self.reason,
            pick=self.pick,
            duplicates=self.duplicates,
            bad_stages=self.bad_stages,
            shard_stage=stage,
            shards=shards,
            plan=None if self.plan is None else self.plan.folder / BATCHES,
            inputs=inputs,
            steps=self.records,
            seconds=self.stages.seconds,
        )
        run_one(finish)
        return Manifest.load(dataset)

    def _write_in_order(self, plan: Stage, stage: Stage, dataset: Path) -> list[Shard]:
        shards = cut_by_batches(plan.folder / BATCHES, self.recipe.output.rows_per_shard)
        scattered = self.workspace.stage(len(self.recipe.steps) + 1, "scatter")
        if not (scattered.folder / "places.npy").exists():
            run_one(Places(plan.folder / "kept.npy", scattered))
        scatter = Scatter(self.source, self.scores, scattered, shards)
        self.stages.each("scatter rows", scattered, scatter, self.blocks, "arrow")
        join = JoinShard(self.source, self.blocks, self.scores, scattered, stage, dataset, len(shards))
        self.stages.each("write shards", stage, join, shards, "json")
        return shards


def _texts(source: Source, column: str) -> list[str]:
    """All texts of a small source, such as a target set."""
    if column not in source.schema.names:
        raise SourceError(f"the targets have no column {column!r}; they have: {', '.join(source.schema.names)}")
    texts: list[str] = []
    for block in source.blocks(16_384):
        table, bad = source.read(block, (column,))
        if bad:
            raise SourceError(f"target row {bad[0].row} of {bad[0].file}: {bad[0].reason}")
        texts += table[column].to_pylist()
    empty = next((number for number, text in enumerate(texts) if not text), None)
    if empty is not None:
        file, row = source.locate(empty)
        raise SourceError(f"{file}, row {row}: the target's {column!r} is null or empty")
    if not texts:
        raise SourceError("the target source has no rows")
    return texts
