"""Jobs: from a recipe to a curated dataset on disk, atomic, resumable, deterministic.

A run is a chain of stages in ``OUT.partial`` (:mod:`curation.pipelines.engine.workspace`). A stage leaves a file for
each block of rows, or one file for all; whatever is there when a run starts is not done again. Blocks are cut by
position and randomness is keyed by seed and step, so the result does not depend on who did what, or when.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from curation.dataset.inspect import source_of
from curation.dataset.manifest import BATCHES, DECISIONS, MANIFEST, Manifest, StepRecord
from curation.errors import CurationError, OutputError, RecipeError, SourceError
from curation.pipelines.engine.fingerprints import changes
from curation.pipelines.engine.functions import expect
from curation.pipelines.engine.ray import check_room, run_one, runtime
from curation.pipelines.engine.stages import Stages
from curation.pipelines.engine.target import check_target, folder_of, followed
from curation.pipelines.engine.workspace import Stage, Workspace, digest
from curation.pipelines.memory import SpilledSource, files_behind, spill
from curation.pipelines.output.finish import FinishDataset, cut_shards
from curation.pipelines.output.ordered import JoinShard, Places, Scatter, cut_by_batches
from curation.pipelines.output.shards import Shard, WriteShard
from curation.pipelines.steps.acquire import Acquire
from curation.pipelines.steps.base import (
    FIRST_REASON,
    Kind,
    MarkBad,
    Outcome,
    Step,
    StepRun,
    dropped_of,
    reason_in_full,
)
from curation.pipelines.steps.check import Check, check_columns, kind_key
from curation.pipelines.steps.stored import replay
from curation.progress import Progress, Silent
from curation.recipe.model import (
    BLOCK_BYTES,
    FileSource,
    Made,
    MemorySource,
    Output,
    Recipe,
    Resources,
    StdlibSource,
)
from curation.sources import open_source
from curation.sources.base import InputRecord, Source

CHECK = "check rows"
RECUT = "acquire"
"""The step whose last one :func:`reselect` changes."""


def run(
    recipe: Recipe | Sequence[Step],
    out: str | Path,
    *,
    source: Any = None,
    seed: int = 0,
    on_bad_row: Literal["stop", "quarantine"] = "stop",
    rows_per_shard: int = 50_000,
    block_rows: int = 16_384,
    block_bytes: int = BLOCK_BYTES,
    ray_address: str | None = None,
    workers: int | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Run a recipe and put the curated dataset at ``out``.

    Killed at any moment and called again it goes on, and its shards are byte-identical to an undisturbed run's.
    Where ``out`` already holds the result of this recipe on these inputs, nothing is done.

    Args:
        recipe: what to do; or the steps alone, and the other parts of a recipe as the arguments below.
        out: the dataset's folder; ``out`` + ``.partial`` beside it holds the unfinished run.
        source: the rows: a ``FileSource`` or ``StdlibSource``, a path as ``curation inspect`` takes it, a
            ``pyarrow.Table``, a ``datasets.Dataset`` or a ``ray.data.Dataset``. Rows in memory are written into the
            folder of the unfinished run. None: as the recipe says.
        seed, on_bad_row, rows_per_shard, block_rows, block_bytes: as in a recipe; with steps alone.
        ray_address: a Ray cluster (also by ``RAY_ADDRESS``); it must see ``out`` and the inputs under the same paths.
        workers: the most tasks at a time, and the CPUs of a local runtime.
        restart: drop what an interrupted run had finished.
        progress: told what is going on.

    Returns:
        The manifest, as it stands in ``out/manifest.json``.

    Raises:
        CurationError: see :mod:`curation.errors`; nothing is at ``out`` then, and what was finished is kept.
        pydantic.ValidationError: (a ``ValueError``) the steps do not fit each other.
    """
    rows = None
    if source is not None:
        source, rows = _source(source)
    if isinstance(recipe, Recipe):
        recipe = recipe if source is None else recipe.model_copy(update={"source": source})
    else:
        if source is None:
            raise SourceError("steps alone say nothing of the rows: give `source`")
        recipe = Recipe(
            source=source,
            steps=list(recipe),
            output=Output(rows_per_shard=rows_per_shard),
            seed=seed,
            on_bad_row=on_bad_row,
            block_rows=block_rows,
            block_bytes=block_bytes,
        )
    return _Job(
        recipe.resolved(Path.cwd()), folder_of(out), rows, ray_address, workers, restart, progress or Silent(), None
    )()


def reselect(
    done: str | Path,
    out: str | Path,
    *,
    count: int | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    beta: float | None = None,
    shift: float | Literal["lowest"] | None = None,
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
        kind: another way to draw; None keeps the old one, as for ``beta``, ``shift`` and ``seed``.
        beta: another coldness.
        shift: another shift of the scores, for ``power``.
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
    done, out = Path(done), folder_of(out)
    manifest = Manifest.load(done)
    changes = {"count": count, "fraction": fraction, "threshold": threshold, "kind": kind, "beta": beta, "shift": shift}
    recipe = _recut(done, manifest, changes, seed)
    return _Job(recipe, out, None, ray_address, workers, False, progress or Silent(), (done, manifest))()


def _recut(done: Path, manifest: Manifest, changes: Mapping[str, Any], seed: int | None) -> Recipe:
    """The recipe of a finished dataset with other parameters of its last ``acquire`` step; None keeps a parameter."""
    raw = json.loads(json.dumps(manifest.recipe))
    last = next((step for step in reversed(raw["steps"]) if step["step"] == RECUT), None)
    if last is None:
        raise RecipeError(f"{done}: its recipe has no `acquire` step, so there is no cut to change")
    sizes = {name: changes[name] for name in ("count", "fraction", "threshold")}
    if any(value is not None for value in sizes.values()):
        last.update(sizes)
        if sizes["threshold"] is not None:
            last["kind"] = "threshold"
        elif last["kind"] == "threshold":
            last["kind"] = "top-k"
    last.update({name: changes[name] for name in ("kind", "beta", "shift") if changes[name] is not None})
    if last["kind"] != "power" and changes["shift"] is None:
        last.pop("shift", None)
    if seed is not None:
        raw["seed"] = seed
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        reasons = "; ".join(issue["msg"].removeprefix("Value error, ") for issue in error.errors())
        raise RecipeError(f"this cut is not possible: {reasons}") from error


def _source(given: Any) -> tuple[Any, Any]:
    """A source for a recipe, and the rows themselves where they are in memory."""
    if isinstance(given, FileSource | StdlibSource):
        return given, None
    if isinstance(given, str | Path):
        return source_of(str(given)), None
    behind = files_behind(given)
    if behind is not None:
        return behind, None
    return MemorySource(format="memory", kind=type(given).__qualname__, rows=0, fingerprint=""), given


class _Job:
    """One call of :func:`run`: what is known so far, and the walk over the steps."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        in_memory: Any,
        ray_address: str | None,
        workers: int | None,
        restart: bool,
        progress: Progress,
        stored: tuple[Path, Manifest] | None,
    ) -> None:
        self.recipe = recipe
        self.steps: list[Step] = list(recipe.steps)  # type: ignore[arg-type]  # a recipe knows them by protocol
        self.quarantine = recipe.on_bad_row == "quarantine"
        self.out = followed(out)
        self.in_memory = in_memory
        self.ray_address = ray_address
        self.workers = workers
        self.restart = restart
        self.progress = progress
        self.stages = Stages(progress, workers)
        self.stored = stored
        self.workspace = Workspace(self.out, quarantine=self.quarantine, note=progress.note)
        self.made = Made()
        self.scores: dict[str, Stage] = {}
        self.vectors: dict[str, Stage] = {}
        self.outcomes: list[Outcome] = []
        self.records: list[StepRecord] = []

    def __call__(self) -> Manifest:
        check_target(self.out)
        if self.in_memory is not None:
            return self._from_memory()
        if isinstance(self.recipe.source, MemorySource):
            again = "run its recipe again, with the rows" if self.stored else "hand it over again,"
            raise SourceError(
                f"the source was a {self.recipe.source.kind} in memory, which is gone: {again} as `source`"
            )
        return self._run(open_source(self.recipe.source), self.workspace.held)

    def _from_memory(self) -> Manifest:
        """Write the rows to a file in the workspace first; it goes with the workspace."""
        with self.workspace.held():
            try:
                spec, path = spill(self.in_memory, self.workspace.folder)
                self.recipe = self.recipe.model_copy(update={"source": spec})
                return self._run(SpilledSource(spec, path), nullcontext, path.name)
            except CurationError:
                if not self.workspace.claimed and self.workspace.folder.exists():
                    self.workspace.discard()
                raise

    def _run(self, source: Source, held: Callable[[], AbstractContextManager[None]], keep: str = "") -> Manifest:
        """Walk the steps; ``held`` keeps other drivers out of the workspace, ``keep`` is a file there that stays."""
        self.source = source
        for line in source.notes:
            self.progress.note(line)
        # A cut of stored scores loses nothing where it stops.
        stops = not self.quarantine and self.stored is None
        replayed = [number for number in range(1, len(self.steps) + 1) if self._is_replayed(number)]
        required = check_columns(self.steps, source.schema, stops=stops, replayed=replayed)
        inputs = source.inputs()
        self.depends = [self._depends(number) for number in range(1, len(self.steps) + 1)]
        finished = self._already_there(inputs, held)
        if finished is not None:
            return finished
        with held(), runtime(self.ray_address, self.workers) as grows:
            # Another driver may have brought it to its end before the folder was ours.
            finished = self._already_there(inputs, nullcontext)
            if finished is not None:
                return finished
            check_room(self._asked(), grows=grows, note=self.progress.note)
            self.blocks = source.blocks(self.recipe.block_rows, self.recipe.block_bytes)
            self.rows = sum(block.rows for block in self.blocks)
            if self.rows == 0:
                raise SourceError(f"the source has no rows: {', '.join(record.path for record in inputs)}")
            identity = self._identity(inputs)
            self.workspace.identify(identity, restart=self.restart, keep=keep)
            for number, step in enumerate(self.steps, 1):
                step.check_rows(f"step {number} ({step.step})", self.rows)
            rows = self._check_rows(required, digest(identity))
            for number, step in enumerate(self.steps, 1):
                rows = self._step(number, step, rows)
            return self._write(inputs)

    def _already_there(
        self, inputs: list[InputRecord], held: Callable[[], AbstractContextManager[None]]
    ) -> Manifest | None:
        """The manifest at ``out``, where that is this very run's result.

        Raises:
            SourceError: the stored scores are of other inputs.
            OutputError: the result of something else is there.
        """
        if self.stored is not None and self.stored[1].inputs != inputs:
            raise SourceError(f"an input of {self.stored[0]} changed since it was made: run the recipe again instead")
        if (self.out / MANIFEST).exists():
            manifest = Manifest.load(self.out)
            differing = self._differing(manifest, inputs)
            if differing:
                raise OutputError(
                    f"{self.out} holds the result of {differing}: give another output folder, or remove this one"
                )
            if self.workspace.folder.exists():
                with held():
                    self.workspace.discard()
            self.progress.note(f"{self.out} already holds the result of this recipe on these inputs")
            return manifest
        return None

    def _differing(self, manifest: Manifest, inputs: list[InputRecord]) -> str:
        """What a finished dataset was made from that this run is not, in words; empty where it is this run's."""
        if manifest.inputs != inputs:
            return "other inputs"
        if manifest.recipe_sha256 != self.recipe.sha256():
            return "another recipe"
        changed = [
            f"step {record.number} ({record.step}): {words}"
            for record, now in zip(manifest.steps, self.depends, strict=True)
            for words in changes(record.depends, now)
        ]
        return f"the same recipe, but of {'; '.join(changed)}" if changed else ""

    def _depends(self, number: int) -> dict[str, str]:
        """What a step depends on besides its parameters and the rows; as it was, where it is not done again."""
        if self._is_replayed(number):
            assert self.stored is not None
            return self.stored[1].steps[number - 1].depends
        return self.steps[number - 1].depends()

    def _asked(self) -> dict[str, Resources]:
        """What the tasks ask of Ray, by what they belong to."""
        steps = {
            f"step {number} ({step.step})": step.resources
            for number, step in enumerate(self.steps, 1)
            if not self._is_replayed(number)
        }
        return {CHECK: self.recipe.resources, **steps, "output": self.recipe.output.resources}

    def _identity(self, inputs: list[InputRecord]) -> dict[str, Any]:
        return {
            "source": self.recipe.source.model_dump(mode="json"),
            "input": [record.model_dump() for record in inputs],
            "cut into blocks": digest({"rows": [block.rows for block in self.blocks]}),
            "version of curation": version("curation"),
        }

    def _check_rows(self, required: Mapping[str, tuple[Kind, ...]], before: str) -> int:
        columns = {column: [kind_key(kind) for kind in kinds] for column, kinds in required.items()}
        stage = self.workspace.stage(0, "check", {"before": before, "columns": columns})
        check = Check(self.source, stage, required, self.quarantine)
        done = self.stages.finish(
            CHECK,
            stage,
            lambda: self.stages.each(CHECK, stage, check, self.blocks, "jsonl", resources=self.recipe.resources),
            MarkBad(stage, None, self.rows),
            self.recipe.resources,
        )
        self.reason = stage.folder / "reason.npy"
        self.bad_stages = [stage]
        # Not what was checked, only what came of it: so a step that reads one more column keeps the steps before it.
        self.before = digest({"rows": before, "bad": done["positions"]})
        return int(done["rows_out"])

    def _step(self, number: int, step: Step, rows_in: int) -> int:
        """Bring one step to its end; returns how many rows are left."""
        key = self._key(number, step)
        run = StepRun(
            number=number,
            label=f"{number}. {step.step}",
            source=self.source,
            blocks=self.blocks,
            rows=self.rows,
            block_rows=self.recipe.block_rows,
            seed=self.recipe.seed,
            quarantine=self.quarantine,
            reason=self.reason,
            rows_in=rows_in,
            code=FIRST_REASON + len(self._reasons(number - 1)),
            key=key,
            made=self.made,
            scores=self.scores,
            vectors=self.vectors,
            stages=self.stages,
            workspace=self.workspace,
        )
        if self._is_replayed(number):
            assert self.stored is not None
            outcome = replay(step, run, self.stored[0].absolute() / DECISIONS)
        else:
            outcome = self._run_step(number, step, run)
        self.before = digest(key)
        did = step.did(self.made)
        step.follow(self.made, number)
        self.reason = outcome.reason
        self.scores |= outcome.scores
        self.vectors |= outcome.vectors
        self.bad_stages += outcome.bad
        self.outcomes.append(outcome)
        self.records.append(
            StepRecord(
                number=number,
                step=step.step,
                rows_in=rows_in,
                rows_out=outcome.rows_out,
                dropped=dropped_of(outcome, number, step),
                seconds=outcome.seconds,
                depends=self.depends[number - 1],
                details=outcome.details,
                did=did,
                scores=list(step.scores),
                tables=step.tables(outcome),
            )
        )
        return outcome.rows_out

    def _key(self, number: int, step: Step) -> dict[str, Any]:
        """All that a step's result depends on."""
        depends = self.depends[number - 1]
        if self._is_replayed(number):
            assert self.stored is not None
            depends = depends | {"stored scores": self.stored[1].files[DECISIONS].sha256}
        return {
            "before": self.before,
            "step": step.step,
            "parameters": step.model_dump(mode="json", exclude={"resources"}),
            "depends": depends,
            "seed": self.recipe.seed if step.draws else None,
        }

    def _run_step(self, number: int, step: Step, run: StepRun) -> Outcome:
        """Run a step on what its key says that it depends on, and on nothing else."""
        depends = self.depends[number - 1]
        self._still(number, step)
        # Not what goes to the workers by value, nor what is installed for good, which has no mark of its own.
        named = [name for name in step.functions if not name.startswith("__main__:") and "<locals>" not in name]
        expect({name: depends[name] for name in named if name in depends})
        try:
            outcome = step.run(run)
        finally:
            expect({})
        self._still(number, step)
        return outcome

    def _still(self, number: int, step: Step) -> None:
        """Check that what a step depends on is as it was when the run began.

        Raises:
            SourceError: something changed; what the step has done is dropped.
        """
        changed = changes(self.depends[number - 1], step.depends())
        if changed:
            self.workspace.drop(number)
            raise SourceError(
                f"step {number} ({step.step}): {'; '.join(changed)} while the run used it: run the same command again"
            )

    def _is_replayed(self, number: int) -> bool:
        """Whether a step's scores are those that are stored."""
        if self.stored is None:
            return False
        step = self.steps[number - 1]
        return bool(step.scores) and not step.vectors and number <= self._same_rows_until()

    def _same_rows_until(self) -> int:
        """The step up to which all steps get the rows that they got in the run whose scores are stored."""
        assert self.stored is not None
        if self.recipe.seed != self.stored[1].seed:
            return next(number for number, step in enumerate(self.steps, 1) if isinstance(step, Acquire))
        return max(number for number, step in enumerate(self.steps, 1) if step.step == RECUT)

    def _reasons(self, steps: int) -> list[str]:
        """Why rows are dropped, for so many of the steps, in the order of their codes."""
        return [
            reason_in_full(number, step, words)
            for number, step in enumerate(self.steps[:steps], 1)
            for words in step.reasons
        ]

    def _write(self, inputs: list[InputRecord]) -> Manifest:
        start = time.perf_counter()
        stage = self._output_stage("write")
        dataset = stage.folder / "dataset"
        dataset.mkdir(exist_ok=True)
        plan = next((outcome.plan for outcome in self.outcomes if outcome.plan is not None), None)
        if plan is None:
            kept, shards = cut_shards(stage, self.reason, self.recipe.output)
            task = WriteShard(self.source, self.blocks, kept, self.scores, stage, dataset, len(shards))
            self.stages.each("write shards", stage, task, shards, "json", resources=self.recipe.output.resources)
        else:
            shards = self._write_in_order(plan, stage, dataset)
        self.stages.seconds["write shards"] = round(time.perf_counter() - start, 3)
        finish = FinishDataset(
            dataset,
            recipe=self.recipe,
            source=self.source,
            blocks=self.blocks,
            scores=self.scores,
            reason=self.reason,
            reasons=self._reasons(len(self.steps)),
            pick=next((outcome.pick for outcome in reversed(self.outcomes) if outcome.pick is not None), None),
            duplicates=[outcome.duplicates for outcome in self.outcomes if outcome.duplicates is not None],
            bad_stages=self.bad_stages,
            shard_stage=stage,
            shards=shards,
            plan=None if plan is None else plan.folder / BATCHES,
            inputs=inputs,
            steps=self.records,
            seconds=self.stages.seconds,
        )
        run_one(finish, resources=self.recipe.output.resources)
        manifest = Manifest.load(dataset)
        self.workspace.publish(dataset, {MANIFEST, *manifest.files})
        return manifest

    def _output_stage(self, name: str) -> Stage:
        key = {"before": self.before, "rows_per_shard": self.recipe.output.rows_per_shard}
        return self.workspace.stage(len(self.steps) + 1, name, key)

    def _write_in_order(self, plan: Stage, stage: Stage, dataset: Path) -> list[Shard]:
        resources = self.recipe.output.resources
        shards = cut_by_batches(plan.folder / BATCHES, self.recipe.output.rows_per_shard)
        scattered = self._output_stage("scatter")
        if not (scattered.folder / "places.npy").exists():
            run_one(Places(plan.folder / "kept.npy", scattered), resources=resources)
        scatter = Scatter(self.source, self.scores, scattered, shards)
        self.stages.each("scatter rows", scattered, scatter, self.blocks, "arrow", resources=resources)
        join = JoinShard(self.source, self.blocks, self.scores, scattered, stage, dataset, len(shards))
        self.stages.each("write shards", stage, join, shards, "json", resources=resources)
        return shards
