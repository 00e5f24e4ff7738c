"""From a recipe to a curated dataset on disk: atomic, resumable, deterministic.

A run is a chain of stages in ``OUT.partial`` (see :mod:`curation.pipelines.workspace`). A stage leaves a file for
each block of rows, or one file for all; whatever is there when a run starts is not done again. Blocks are cut by
position and randomness is keyed by seed and step, so the result does not depend on who did what, or when.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import OutputError, RecipeError, SourceError
from curation.files import atomic
from curation.manifest import (
    BAD_ROW,
    DECISIONS,
    KEPT,
    MANIFEST,
    QUARANTINE,
    FileRecord,
    InputRecord,
    Manifest,
    StepRecord,
    now,
    sha256_of,
)
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
    is_number,
    is_text,
    load_function,
    save,
)
from curation.pipelines.choose import Choose, DropDuplicates, MarkBad, describe
from curation.pipelines.executor import Piece, run_one, run_pieces, runtime
from curation.pipelines.workspace import Stage, Workspace
from curation.pipelines.write import Shard, WriteDecisions, WriteShard, shard_schema, write_dataset_files
from curation.progress import Progress, Silent
from curation.recipe import Acquire, Align, Dedup, Recipe, Resources, Score
from curation.report import write_report
from curation.selectors.zipfit import ZipFit
from curation.source import Source
from curation.sources import open_source

PACKAGES = ("curation", "numpy", "pyarrow", "ray", "lz4", "zstandard", "xxhash", "numba")


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
        count, fraction, threshold: how much to keep; one of them at most.
        kind, beta, seed: other parameters of the draw; None keeps the old ones.
        ray_address, workers, progress: as for :func:`run`.

    Returns:
        The new manifest.

    Raises:
        RecipeError: the recipe has no ``acquire`` step, or the parameters do not fit together.
        SourceError: ``done`` is not a finished dataset, or an input changed since it was made.
    """
    manifest = Manifest.load(done)
    raw = json.loads(json.dumps(manifest.recipe))
    last = next((step for step in reversed(raw["steps"]) if step["step"] == "acquire"), None)
    if last is None:
        raise RecipeError(f"{done}: its recipe has no `acquire` step, so there is no cut to change")
    sizes = {"count": count, "fraction": fraction, "threshold": threshold}
    if any(value is not None for value in sizes.values()):
        last.update(sizes)
        if threshold is not None:
            last["kind"] = "threshold"
        elif last["kind"] == "threshold":
            last["kind"] = "top-k"
    last.update({key: value for key, value in {"kind": kind, "beta": beta}.items() if value is not None})
    if seed is not None:
        raw["seed"] = seed
    try:
        recipe = Recipe.model_validate(raw)
    except ValueError as error:
        raise RecipeError(f"this cut is not possible: {error}") from error
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
        self.out = out.absolute()
        self.ray_address = ray_address
        self.workers = workers
        self.restart = restart
        self.progress = progress
        self.stored = stored
        self.workspace = Workspace(self.out)
        self.scores: dict[str, Stage] = {}
        self.duplicates: list[Path] = []
        self.records: list[StepRecord] = []
        self.seconds: dict[str, float] = {}
        self.pick: Path | None = None

    def __call__(self) -> Manifest:
        self.source: Source = open_source(self.recipe.source)
        self._check_columns()
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
            self._check_rows()
            for number, step in enumerate(self.recipe.steps, 1):
                self._step(number, step)
            manifest = self._write(inputs)
            self.workspace.publish()
        return manifest

    def _check_columns(self) -> None:
        schema = self.source.schema
        for name in (
            "_index",
            "_weight",
            *(step.name for step in self.recipe.steps if isinstance(step, Align | Score)),
        ):
            if name in schema.names:
                raise RecipeError(
                    f"the source has a column {name!r}, and the output adds one of that name: "
                    "give the step another `name`, or the column, by `columns` of the source"
                )
        self.texts, self.numbers = set(), set()
        for number, step in enumerate(self.recipe.steps, 1):
            if isinstance(step, Align | Dedup):
                self._require(number, step.step, step.column, is_text, "text")
                self.texts.add(step.column)
            elif isinstance(step, Score) and step.column is not None:
                self._require(number, step.step, step.column, is_number, "a number")
                self.numbers.add(step.column)
            elif isinstance(step, Score) and step.function is not None:
                load_function(step.function, (str(Path.cwd()),))
            elif isinstance(step, Acquire) and step.per is not None:
                self._require(number, step.step, step.per, lambda kind: True, "")

    def _require(self, number: int, step: str, column: str, fits: Callable[[Any], bool], what: str) -> None:
        schema = self.source.schema
        if column not in schema.names:
            raise SourceError(
                f"step {number} ({step}) reads column {column!r}, but the source has: {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if not fits(kind):
            raise SourceError(f"step {number} ({step}) reads column {column!r} as {what}, but it is {kind}")

    def _already_there(self, inputs: list[InputRecord]) -> Manifest | None:
        """The manifest at ``out``, where that is this very run's result.

        Raises:
            OutputError: something else is there.
        """
        if self.stored is not None and self.stored[1].inputs != inputs:
            raise SourceError(f"an input of {self.stored[0]} changed since it was made: run the recipe again instead")
        if not self.out.exists():
            return None
        if (self.out / MANIFEST).exists():
            manifest = Manifest.load(self.out)
            if manifest.recipe_sha256 == self.recipe.sha256() and manifest.inputs == inputs:
                if self.workspace.folder.exists():
                    with self.workspace.held():
                        self.workspace.discard()
                self.progress.note(f"{self.out} already holds the result of this recipe on these inputs")
                return manifest
            raise OutputError(
                f"{self.out} holds the result of another recipe, or of other inputs: give another output folder, "
                "or remove this one"
            )
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

    def _check_rows(self) -> None:
        stage = self.workspace.stage(0, "check")
        check = Check(
            self.source,
            stage,
            frozenset(self.texts),
            frozenset(self.numbers),
            quarantine=self.recipe.on_bad_row == "quarantine",
        )
        self._finish(
            stage,
            "check rows",
            lambda: self._each_block("check rows", stage, check, "jsonl"),
            MarkBad(stage, None, self.rows),
        )
        self.reason = stage.folder / "reason.npy"
        self.bad_stages = [stage]

    def _step(self, number: int, step: Align | Score | Acquire | Dedup) -> None:
        stage = self.workspace.stage(number, step.step)
        rows_in = self._rows_in()
        label = f"{number}. {step.step}"
        if isinstance(step, Align | Score):
            before = self.reason
            self.scores[step.name] = stage

            def each() -> None:
                columns, score = self._scorer(step)
                quarantine = self.recipe.on_bad_row == "quarantine"
                task = ScoreBlock(self.source, stage, before, columns, score, quarantine)
                self._each_block(label, stage, task, resources=step.resources)

            done = self._finish(stage, label, each, MarkBad(stage, before, self.rows))
            dropped = {BAD_ROW: done["bad"]} if done["bad"] else {}
            self.bad_stages.append(stage)
        else:
            code = number + 1
            if isinstance(step, Dedup):
                hashing = HashBlock(self.source, stage, step.column)
                self.duplicates.append(stage.folder / "duplicates.npy")
                done = self._finish(
                    stage,
                    label,
                    lambda: self._each_block(label, stage, hashing, resources=step.resources),
                    DropDuplicates(stage, self.reason, code, self.blocks),
                )
            else:
                name = step.score or next(reversed(self.scores))
                choose = Choose(
                    step, number, self.recipe.seed, stage, self.scores[name], self.reason, code, self.blocks
                )
                grouping = None if step.per is None else GroupBlock(self.source, stage, step.per)

                def groups() -> None:
                    if grouping is not None:
                        self._each_block(label, stage, grouping, "arrow", resources=step.resources)

                done = self._finish(stage, label, groups, choose)
                done["details"]["score"] = name
                self.pick = stage.folder / "pick.npy"
            out = rows_in - done["rows_out"]
            dropped = {describe(step, number): out} if out else {}
        self.reason = stage.folder / "reason.npy"
        self.records.append(
            StepRecord(
                number=number,
                step=step.step,
                rows_in=rows_in,
                rows_out=done["rows_out"],
                dropped=dropped,
                seconds=done["seconds"],
                details=done.get("details", {}),
            )
        )

    def _rows_in(self) -> int:
        return self.records[-1].rows_out if self.records else self.checked["rows_out"]

    def _scorer(self, step: Align | Score) -> tuple[tuple[str, ...] | None, BlockScore]:
        if self.stored is not None:
            return (), StoredScore(self.stored[0] / DECISIONS, step.name, self.reason)
        if isinstance(step, Align):
            targets = _texts(open_source(step.targets), step.target_column)
            threads = max(1, int(step.resources.cpus))
            zipfit = ZipFit(targets=targets, codec=step.codec, level=step.level, threads=threads)
            return (step.column,), Alignment(zipfit, step.column)
        if step.column is not None:
            return (step.column,), ColumnScore(step.column)
        assert step.function is not None
        return None, FunctionScore(step.function, step.parameters, (str(Path.cwd()),))

    def _each_block(
        self,
        label: str,
        stage: Stage,
        task: Callable[[Any], None],
        suffix: str = "npy",
        resources: Resources | None = None,
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        pieces = self.blocks if pieces is None else pieces
        finished = stage.finished(suffix)
        left = [piece for piece in pieces if piece.number not in finished]
        rows = sum(piece.rows for piece in pieces)
        self.progress.begin(label, rows, rows - sum(piece.rows for piece in left))
        run_pieces(
            task,
            left,
            label=label,
            tries=stage.folder,
            progress=self.progress,
            resources=resources,
            workers=self.workers,
        )
        self.progress.end()

    def _finish(self, stage: Stage, label: str, each: Callable[[], None], merge: Callable[[], None]) -> dict[str, Any]:
        """Bring a stage to its end, unless an earlier run did; returns what it says of itself."""
        start = time.perf_counter()
        if stage.done is None:
            each()
            run_one(merge)
        done = stage.done
        assert done is not None
        if "seconds" not in done:
            done["seconds"] = round(time.perf_counter() - start, 3)
            stage.finish(done)
        if label == "check rows":
            self.checked = done
        self.seconds[label] = done["seconds"]
        return done

    def _write(self, inputs: list[InputRecord]) -> Manifest:
        start = time.perf_counter()
        dataset = self.workspace.dataset
        stage = self.workspace.stage(len(self.recipe.steps) + 1, "write")
        kept = stage.folder / "kept.npy"
        if not kept.exists():
            save(kept, np.flatnonzero(np.load(self.reason, mmap_mode="r") == 0))
        rows = len(np.load(kept, mmap_mode="r"))
        size = self.recipe.output.rows_per_shard
        shards = [Shard(number, start, min(size, rows - start)) for number, start in enumerate(range(0, rows, size))]
        task = WriteShard(self.source, self.blocks, kept, self.scores, stage, dataset, len(shards))
        self._each_block("write shards", stage, task, "json", pieces=shards)
        files = self._shard_records(stage, shards)
        run_one(
            WriteDecisions(
                self.blocks,
                self.scores,
                self.reason,
                (KEPT, BAD_ROW, *(describe(step, number) for number, step in enumerate(self.recipe.steps, 1))),
                self.pick,
                tuple(self.duplicates),
                dataset / DECISIONS,
            )
        )
        bad = self._write_quarantine(dataset / QUARANTINE)
        digest = self.recipe.sha256()
        write_dataset_files(dataset, shard_schema(self.source.schema, list(self.scores)), list(files), digest[:16])
        self.seconds["write"] = round(time.perf_counter() - start, 3)
        manifest = Manifest(
            recipe=self.recipe.model_dump(mode="json"),
            recipe_sha256=digest,
            seed=self.recipe.seed,
            inputs=inputs,
            rows_in=self.rows,
            rows_out=rows,
            bad_rows=bad,
            steps=self.records,
            files=files,
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            seconds=self.seconds,
            created=now(),
        )
        write_report(dataset, manifest)
        for path in sorted(dataset.iterdir()):
            if path.name not in files and path.name != MANIFEST:
                counted = self.rows if path.name == DECISIONS else None
                files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path), rows=counted)
        manifest = manifest.model_copy(update={"files": files})
        manifest.save(dataset)
        return manifest

    def _shard_records(self, stage: Stage, shards: Sequence[Shard]) -> dict[str, FileRecord]:
        files: dict[str, FileRecord] = {}
        for shard in shards:
            record = json.loads(stage.piece(shard.number, "json").read_text(encoding="utf-8"))
            files.update({name: FileRecord.model_validate(values) for name, values in record.items()})
        return files

    def _write_quarantine(self, path: Path) -> int:
        """Gather the bad rows of all stages; no file where there are none."""
        pieces = [piece for stage in self.bad_stages for piece in sorted(stage.folder.glob("[0-9]*.jsonl"))]
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
