"""Steps: what one declares, and what it is given to work with.

A step is a pydantic model of its parameters that says what it reads, what it adds, what its reasons are called, and how
it runs. A run (:mod:`curation.pipelines.job`) walks the steps of a recipe and knows none of them.
"""

import hashlib
import json
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from curation.arrow import is_number, is_text
from curation.dataset.manifest import BAD_ROW, ReportTable
from curation.errors import BadRowError, SourceError, StepError
from curation.files import atomic
from curation.pipelines.engine.fingerprints import code, packages, sources
from curation.pipelines.engine.workspace import Stage, Workspace, save
from curation.recipe.model import FileSource, Made, Model, Resources
from curation.sources.base import BadRow, Block, Source

if TYPE_CHECKING:
    from curation.pipelines.engine.stages import Stages

FIRST_REASON = 2
"""The code of the first step's first reason: 0 is kept, 1 a bad row."""


@dataclass(frozen=True)
class Kind:
    """What a column that a step reads must hold.

    Args:
        words: in an error, such as ``"text"``.
        fits: whether a type can hold it.
        bad: bool[rows], the rows that do not hold it; None: every row does.
        reason: why such a row is bad.
    """

    words: str
    fits: Callable[[pa.DataType], bool]
    bad: Callable[[pa.ChunkedArray], npt.NDArray[np.bool_]] | None = None
    reason: str = ""


def _empty(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    bad: npt.NDArray[np.bool_] = pc.fill_null(pc.equal(pc.binary_length(column), 0), True).to_numpy()
    return bad


def _not_finite(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    values = column.cast(pa.float64(), safe=False)
    bad: npt.NDArray[np.bool_] = pc.fill_null(pc.invert(pc.is_finite(values)), True).to_numpy()
    return bad


def _any(kind: pa.DataType) -> bool:
    return True


TEXT = Kind("text", is_text, _empty, "text is null or empty")
NUMBER = Kind("a number", is_number, _not_finite, "not a finite number")
ANYTHING = Kind("anything", _any)


@dataclass
class Outcome:
    """What a step did.

    Args:
        rows_out: rows that are still in.
        reason: the file of int8[rows], why each row of the source is out (0: still in).
        seconds: what it took, over all runs that worked on it.
        dropped: rows dropped, by reason in words as :attr:`Step.reasons` has them.
        bad_rows: rows that turned out to be bad.
        details: choices and statistics, for the manifest.
        bad: folders of stages whose bad rows belong into the quarantine.
        scores: the stage of each score column that it made, a piece float64[rows] for each block.
        vectors: the stage of each column that it embedded.
        pick: int64[kept], kept positions in the order of a draw.
        duplicates: int64[dropped, 2], a position and the one that was kept in its place, rising.
        plan: the stage that holds a plan (``batches.arrow``) and the kept positions in its order (``kept.npy``).
    """

    rows_out: int
    reason: Path
    seconds: float
    dropped: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    bad: Sequence[Stage] = ()
    scores: Mapping[str, Stage] = field(default_factory=dict)
    vectors: Mapping[str, Stage] = field(default_factory=dict)
    pick: Path | None = None
    duplicates: Path | None = None
    plan: Stage | None = None

    @classmethod
    def of(cls, stage: Stage, done: Mapping[str, Any], **others: Any) -> "Outcome":
        """The outcome of a step whose last stage is ``stage``, and which says ``done`` of itself."""
        return cls(rows_out=done["rows_out"], reason=stage.folder / "reason.npy", seconds=done["seconds"], **others)


@dataclass
class StepRun:
    """What a step is given to work with.

    Args:
        number: the step's, from 1; ``label`` names it in progress, errors and the manifest.
        source, blocks: the rows. ``rows``: how many there are, ``block_rows`` how many in a block.
        seed: the recipe's.
        quarantine: whether bad rows are set aside, rather than stopping the run.
        reason: the file of int8[rows], why each row is out so far (0: still in).
        rows_in: rows that are still in.
        code: the code of the step's first reason.
        key: what the step's result depends on (see :class:`~curation.pipelines.engine.workspace.Workspace`).
        made: what the steps before it made.
        scores, vectors: the stage of each score column and of each embedded column that earlier steps made.
        stages, workspace: how pieces are run, and where they are kept.
    """

    number: int
    label: str
    source: Source
    blocks: Sequence[Block]
    rows: int
    block_rows: int
    seed: int
    quarantine: bool
    reason: Path
    rows_in: int
    code: int
    key: Mapping[str, Any]
    made: Made
    scores: Mapping[str, Stage]
    vectors: Mapping[str, Stage]
    stages: "Stages"
    workspace: Workspace

    def stage(self, name: str, *, without: Collection[str] = ()) -> Stage:
        """A folder of the step's own, which is empty where an earlier run depended on anything else.

        Args:
            name: the stage's among those of the step.
            without: parameters of the step that do not matter to this stage.
        """
        parameters = {name: value for name, value in self.key["parameters"].items() if name not in without}
        return self.workspace.stage(self.number, re.sub(r"[^\w-]+", "-", name), {**self.key, "parameters": parameters})


class Step(Model):
    """One step of a recipe: its parameters, and what they mean.

    Made from this class, ours and anybody's alike. A step that judges rows one block at a time is easier made from
    :class:`~curation.pipelines.steps.block.BlockStep`.

    Args:
        step: its name in a recipe. A step that lives elsewhere has ``module:Class``.
        resources: what one of its Ray tasks asks for.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages whose version may change what it makes."""

    step: str = ""
    resources: Resources = Resources()

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        # A name that a class does not give itself is its parent's, which is another step.
        named = "step" in get_annotations(cls)
        if not named or cls.model_fields["step"].default in ("", None):
            cls.model_fields["step"].default = f"{cls.__module__}:{cls.__qualname__}"
            cls.model_fields["step"].annotation = str
            cls.model_rebuild(force=True)

    @property
    def scores(self) -> tuple[str, ...]:
        """Score columns that it adds."""
        return ()

    @property
    def signed(self) -> tuple[str, ...]:
        """Those of its scores that may be negative."""
        return ()

    @property
    def vectors(self) -> tuple[str, ...]:
        """Columns of the source that it embeds, for a later step."""
        return ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it drops rows, in a few words each, such as ``"below the cut"``."""
        return ()

    def reads(self, made: Made) -> Mapping[str, Kind]:
        """Columns of the source that it reads, and what each must hold in every row."""
        return {}

    @property
    def draws(self) -> bool:
        """Whether the recipe's seed may change what it makes."""
        return True

    @property
    def functions(self) -> tuple[str, ...]:
        """Code that runs in it and is not ours, each as ``module:attribute``."""
        elsewhere = type(self).__module__.partition(".")[0] != "curation"
        return (f"{type(self).__module__}:{type(self).__qualname__}",) if elsewhere else ()

    def depends(self) -> dict[str, str]:
        """What its result depends on besides its parameters and the rows: a hash or a version by name.

        Here: the files behind all sources among its parameters, :attr:`functions`, and :attr:`libraries`. What an
        interrupted run left of a step stays in use for as long as this and the parameters are the same.

        Raises:
            SourceError: a file cannot be read.
        """
        depends = packages(*self.libraries) | sources(self)
        for name in self.functions:
            depends |= code(name)
        return depends

    def did(self, made: Made) -> str:
        """What it did to the rows, after "rows were": ``"freed of repeated text"``."""
        return f"taken through {self.step}"

    def follow(self, made: Made, number: int) -> None:
        """Add what it makes to what the steps before it make.

        Raises:
            ValueError: they lack something, or have made the same; goes on after "step 2 (name) ".
        """
        if made.last is not None:
            raise ValueError(
                f"stands after {made.last}, which groups the rows that are left into batches and lays them out: "
                "nothing may change them then. Put it before"
            )
        for name in self.scores:
            if name in made.scores:
                raise ValueError(
                    f"makes the score {name!r}, which an earlier step has made: give one of them another `name`"
                )
            made.scores[name] = number
        made.signed |= set(self.signed)
        for name in self.vectors:
            if name in made.vectors:
                raise ValueError(f"embeds {name!r}, which step {made.vectors[name]} has done")
            made.vectors[name] = made.unused[name] = number

    def resolved(self, folder: Path) -> Self:
        """With the relative paths of its file sources, at any depth, resolved against a folder."""
        return _resolved_fields(self, folder)

    def check(self, label: str, schema: pa.Schema, made: Made) -> None:
        """Check, before anything runs, that the source has what the step reads.

        Raises:
            SourceError: a column is missing, or of another type.
            RecipeError: a function that the step names cannot be imported.
        """
        for column, kind in self.reads(made).items():
            require(label, column, schema, kind)

    def check_rows(self, label: str, rows: int) -> None:
        """Check, before anything runs, that the source has as many rows as the step needs.

        Raises:
            StepError: it has not.
        """

    def run(self, run: StepRun) -> Outcome:
        """Do it. What stands on disk already is not done again.

        Raises:
            CurationError: it cannot be done; what was finished is kept.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks `run`; or make it from curation.pipelines.BlockStep")

    def tables(self, outcome: Outcome) -> list[ReportTable]:
        """Tables that the report shows of it."""
        return []


M = TypeVar("M", bound=BaseModel)


def _resolved_fields(model: M, folder: Path) -> M:
    values = {name: getattr(model, name) for name in type(model).model_fields}
    resolved = {name: _resolved(value, folder) for name, value in values.items()}
    changes = {name: value for name, value in resolved.items() if value is not values[name]}
    return model.model_copy(update=changes) if changes else model


def _resolved(value: Any, folder: Path) -> Any:
    """A parameter with its file sources resolved; itself where it holds none."""
    if isinstance(value, FileSource):
        return value.resolved(folder)
    if isinstance(value, BaseModel):
        return _resolved_fields(value, folder)
    if type(value) in (list, tuple):
        parts = [_resolved(part, folder) for part in value]
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    if type(value) is dict:
        parts = [_resolved(part, folder) for part in value.values()]
        return value if all(map(operator.is_, parts, value.values())) else dict(zip(value, parts, strict=True))
    return value


def require(label: str, column: str, schema: pa.Schema, kind: Kind) -> None:
    """Check that a source has a column that can hold what a step reads.

    Raises:
        SourceError: it has not.
    """
    if column not in schema.names:
        raise SourceError(f"{label} reads column {column!r}, but the source has: {', '.join(schema.names)}")
    there = schema.field(column).type
    if not kind.fits(there):
        raise SourceError(f"{label} reads column {column!r} as {kind.words}, but it is {there}")


@dataclass(frozen=True)
class MarkBad:
    """Merge the bad rows of a stage into the reasons."""

    stage: Stage
    before: Path | None
    rows: int

    def __call__(self) -> None:
        reason = np.zeros(self.rows, np.int8) if self.before is None else np.load(self.before)
        positions = bad_positions(self.stage)
        reason[positions] = 1
        mark = hashlib.sha256(np.sort(positions).tobytes()).hexdigest()
        finish(self.stage, reason, {"bad": len(positions), "positions": mark})


def finish(stage: Stage, reason: npt.NDArray[np.int8], record: Mapping[str, Any]) -> None:
    """End a stage: write why each row is out, and what the stage says of itself.

    Raises:
        StepError: no row is left.
    """
    remaining = int(np.count_nonzero(reason == 0))
    if remaining == 0:
        raise StepError(f"no row is left: all {len(reason)} are out or bad (see the first in the source)")
    save(stage.folder / "reason.npy", reason)
    stage.finish({"rows_out": remaining, **record})


def bad_positions(stage: Stage) -> npt.NDArray[np.int64]:
    """int64[bad], the positions of the bad rows that the pieces of a stage wrote down."""
    positions: list[int] = []
    for path in sorted(stage.folder.glob("[0-9]*.jsonl")):
        with path.open(encoding="utf-8") as file:
            positions += [json.loads(line)["index"] for line in file]
    return np.array(positions, np.int64)


def write_bad_rows(stage: Stage, block: Block, bad: Sequence[BadRow], *, quarantine: bool) -> None:
    """Stop at the first bad row, or write them all down as JSON lines.

    Raises:
        BadRowError: there is one, and the recipe does not quarantine.
    """
    bad = sorted(bad, key=lambda row: row.index)
    if bad and not quarantine:
        raise BadRowError(bad[0].file, bad[0].row, bad[0].reason)
    with atomic(stage.piece(block.number, "jsonl")) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in bad)


def dropped_of(outcome: Outcome, number: int, step: Step) -> dict[str, int]:
    """An outcome's dropped rows by reason, as manifests and decisions have it: ``"2. acquire: below the cut"``."""
    counted = {BAD_ROW: outcome.bad_rows}
    counted |= {reason_in_full(number, step, words): count for words, count in outcome.dropped.items()}
    return {reason: count for reason, count in counted.items() if count}


def reason_in_full(number: int, step: Step, words: str) -> str:
    """The reason that stands in ``decisions.arrow`` for a row that a step dropped."""
    return f"{number}. {step.step}: {words}"
