"""``embed``: vectors of columns of text, block by block, by a teacher.

A block's vectors are float32[rows, D] in one Arrow file a column, zero where a row had been dropped before; a block
without a row that is still in has no file. Vectors that are zero or not finite make their row a bad row: such a row
would be as near to every other, or to none.

Cost: one pass over the texts, and on disk 4·D bytes for each row and column. ``tfidf`` is fitted on a sample of at
most 20,000 rows, of at most 64 blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from curation.arrow import save_matrices
from curation.errors import StepError
from curation.pipelines.engine.fingerprints import changes
from curation.pipelines.engine.functions import import_path, load_function
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.base import TEXT, Kind, MarkBad, Outcome, Step, StepRun, write_bad_rows
from curation.pipelines.steps.teachers import MODEL, Float32, Teacher, Tfidf, load_teacher, model_version
from curation.recipe.model import Made, Resources
from curation.sources.base import BadRow, Block, Source

SAMPLE_ROWS = 20_000
SAMPLE_BLOCKS = 64


class Embed(Step):
    """Embed texts with a teacher, for the ``b3`` step; rows whose vector is zero or not finite are bad rows."""

    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn", "torch", "sentence-transformers", "transformers")

    step: Literal["embed"] = "embed"
    columns: list[str] = Field(default=["query", "positive"], min_length=1)
    teacher: str = Field(
        default="tfidf",
        description="tfidf (hashed TF-IDF and a truncated SVD; needs no model), sentence-transformers:NAME-OR-PATH, or "
        "module:attribute: a function of a list of texts that returns [texts, D] floats, or a class whose instances "
        "are such functions (made once a worker).",
        pattern=r"^(tfidf|sentence-transformers:.+|[\w.]+:[\w.]+)$",
    )
    dimensions: int = Field(default=128, ge=2, description="Of the tfidf teacher.")
    prompts: dict[str, str] = Field(default={}, description="Text to put before each text of a column.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Texts that a model is first given at a time; halved where memory runs out. Default: 32 on a "
        "CPU, 1024 elsewhere.",
    )

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("`columns` names a column twice")
        unknown = sorted(set(self.prompts) - set(self.columns))
        if unknown:
            raise ValueError(f"`prompts` names {', '.join(unknown)}, which `columns` does not")
        return self

    @property
    def vectors(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return dict.fromkeys(self.columns, TEXT)

    @property
    def draws(self) -> bool:
        return self.teacher == "tfidf"

    @property
    def functions(self) -> tuple[str, ...]:
        return super().functions + ((self.teacher,) if self._is_code else ())

    @property
    def _is_code(self) -> bool:
        return ":" in self.teacher and not self.teacher.startswith(MODEL)

    @property
    def model(self) -> dict[str, str]:
        """The hash of a model's files, or the revision of a model from the Hugging Face hub, by its name."""
        return model_version(self.teacher.removeprefix(MODEL)) if self.teacher.startswith(MODEL) else {}

    def depends(self) -> dict[str, str]:
        """Also :attr:`model`."""
        return super().depends() | self.model

    def did(self, made: Made) -> str:
        return f"embedded by {self.teacher}"

    def resolved(self, folder: Path) -> Self:
        kind, _, name = self.teacher.partition(":")
        if kind == "sentence-transformers" and (folder / name).is_dir():
            return self.model_copy(update={"teacher": f"{kind}:{folder / name}"})
        return self

    def check(self, label: str, schema: pa.Schema, made: Made) -> None:
        super().check(label, schema, made)
        if self._is_code:
            load_function(self.teacher, import_path())

    def run(self, run: StepRun) -> Outcome:
        # Here, because whoever only reads a recipe does without Ray.
        from curation.pipelines.engine.ray import gpus, run_one

        stage = run.stage(self.step)
        columns = {name: run.stage(f"embed-{number}") for number, name in enumerate(self.columns)}

        def each() -> None:
            if self.teacher == "tfidf" and not (stage.folder / "components.npy").exists():
                fit = FitTfidf(run.source, run.blocks, stage, run.reason, self, run.seed)
                run_one(fit, resources=self.resources)
            resources = self.resources
            if self.teacher.startswith(MODEL) and "resources" not in self.model_fields_set and gpus():
                resources = Resources(gpus=1)
            task = EmbedBlock(
                run.source, stage, columns, run.reason, self, run.quarantine, run.key["depends"], import_path()
            )
            # A model is worth a process of its own; to load the tfidf teacher takes less than to start one.
            actors = self.teacher != "tfidf"
            run.stages.each(run.label, stage, task, run.blocks, "jsonl", resources=resources, actors=actors)

        done = run.stages.finish(run.label, stage, each, MarkBad(stage, run.reason, run.rows), self.resources)
        return Outcome.of(
            stage,
            done,
            bad_rows=done["bad"],
            bad=[stage],
            vectors=columns,
        )


@dataclass(frozen=True)
class FitTfidf:
    """Fit the ``tfidf`` teacher on a sample of the rows that are still in: the columns share one space."""

    source: Source
    blocks: Sequence[Block]
    stage: Stage
    reason: Path
    step: Embed
    seed: int

    def __call__(self) -> None:
        rng = np.random.default_rng((self.seed, 5))
        inside = np.load(self.reason, mmap_mode="r") == 0
        occupied = [block for block in self.blocks if inside[block.start : block.start + block.rows].any()]
        some = np.sort(rng.permutation(len(occupied))[:SAMPLE_BLOCKS])
        texts: list[str] = []
        for number in some.tolist():
            block = occupied[number]
            rows = np.flatnonzero(inside[block.start : block.start + block.rows])
            chosen = np.zeros(block.rows, bool)
            chosen[rng.permutation(rows)[: -(-SAMPLE_ROWS // len(some))]] = True
            table, _ = self.source.read(block, self.step.columns)
            for name in self.step.columns:
                texts += _prompted(table[name].filter(pa.array(chosen)), self.step.prompts.get(name))
        Tfidf.fit(texts, self.step.dimensions, self.seed).save(self.stage.folder)


@dataclass
class EmbedBlock:
    """Embed the rows of a block that are still in. ``columns`` has the stage of each column's vectors."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    reason: Path
    step: Embed
    quarantine: bool
    depends: Mapping[str, str]
    path: tuple[str, ...] = ()
    _teacher: Teacher | None = field(default=None, repr=False)

    def __call__(self, block: Block) -> None:
        if self._teacher is None:
            self._teacher = load_teacher(self.step, self.stage.folder, self.path)
            changed = changes({name: self.depends.get(name) for name in self.step.model}, self.step.model)
            if changed:
                raise StepError(f"{'; '.join(changed)} while the run used it: run the same command again")
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        vectors = {name: np.zeros((0, 0), np.float32) for name in self.columns}
        if inside.any():
            table, _ = self.source.read(block, tuple(self.columns))
            table = table.filter(pa.array(inside))
            for name in self.columns:
                vectors[name] = self._teacher(_prompted(table[name], self.step.prompts.get(name)))
        write_vectors(
            self.source, self.stage, self.columns, block, inside, vectors, "the teacher's vector", self.quarantine
        )


def write_vectors(
    source: Source,
    stage: Stage,
    columns: Mapping[str, Stage],
    block: Block,
    inside: npt.NDArray[np.bool_],
    vectors: Mapping[str, Float32],
    what: str,
    quarantine: bool,
) -> None:
    """Write a block's vectors, and last its bad rows; ``what`` is what errors call a vector."""
    bad: dict[int, str] = {}
    rows = np.flatnonzero(inside)
    for name, values in vectors.items():
        finite = np.isfinite(values).all(axis=1)
        zero = finite & ~values.any(axis=1)
        for mask, why in ((~finite, "null, not finite or of another length than the others"), (zero, "zero")):
            for row in rows[mask].tolist():
                bad.setdefault(block.start + row, f"column {name!r}: {what} is {why}")
        if len(rows):
            whole = np.zeros((block.rows, values.shape[1]), np.float32)
            whole[rows] = values
            save_matrices(columns[name].piece(block.number, "arrow"), {"vector": whole})
    listed = [BadRow(index, *source.locate(index), why) for index, why in bad.items()]
    write_bad_rows(stage, block, listed, quarantine=quarantine)


def _prompted(texts: pa.ChunkedArray, prompt: str | None) -> list[str]:
    values: list[str] = texts.to_pylist()
    return [prompt + text for text in values] if prompt else values
