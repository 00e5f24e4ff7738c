"""The recipe: where candidates come from, what is done with them, and how the result is laid out.

A recipe is YAML on disk and a pydantic model in memory. Unknown keys, wrong types and steps in an order that
cannot work are errors that name the file, the line and the key.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class FileSource(_Model):
    """Files of rows: Parquet, Arrow IPC (file or stream), JSON lines (plain or gzip), a saved HF dataset."""

    format: Literal["parquet", "arrow", "jsonl", "dataset"]
    path: str | list[str] = Field(
        min_length=1,
        description="Files, folders, globs or fsspec URLs. Relative paths are resolved against the recipe's folder.",
    )
    columns: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="Columns to read, as name: name-in-the-file. Default: all, as they are called.",
    )


class StdlibSource(_Model):
    """Functions of the installed Python's standard library: real text that every machine has."""

    format: Literal["stdlib"]
    packages: list[str] | None = Field(
        default=None, description="Top-level modules to read, such as json. Default: all of them."
    )
    exclude: list[str] = Field(default=[], description="Top-level modules to leave out.")
    content: Literal["function", "pair"] = Field(
        default="function",
        description="function: whole functions, as `text`. pair: docstring and code without it, as `query` and "
        "`positive`; functions without a docstring are left out.",
    )


Source = Annotated[FileSource | StdlibSource, Field(discriminator="format")]


class Resources(_Model):
    """What one Ray task of a step asks for."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_mib: int | None = Field(default=None, gt=0)


class _Step(_Model):
    resources: Resources = Resources()


class Align(_Step):
    """ZIP-FIT: score each text by how well it compresses together with the target texts."""

    step: Literal["align"]
    targets: Source
    target_column: str = "text"
    column: str = "text"
    name: str = Field(default="alignment", description="The score column that the step makes.")
    codec: Literal["lz4", "gzip", "zstd"] = "lz4"
    level: int | None = None


class Score(_Step):
    """A score from a column of the source, or from a function of a block of rows."""

    step: Literal["score"]
    name: str = Field(default="score", description="The score column that the step makes.")
    column: str | None = Field(default=None, description="A numeric column of the source.")
    function: str | None = Field(
        default=None,
        description="module:function, called with a pyarrow.Table of a block's rows (and `parameters`); returns "
        "one float for each row.",
        pattern=r"^[\w.]+:[\w.]+$",
    )
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.column is None) == (self.function is None):
            raise ValueError("give either `column` or `function`")
        if self.parameters and self.function is None:
            raise ValueError("`parameters` go with `function`")
        return self


class Acquire(_Step):
    """Choose candidates by a score: the highest, those above a threshold, or a stochastic draw."""

    step: Literal["acquire"]
    score: str | None = Field(default=None, description="The score column. Default: the latest one made.")
    kind: Literal["top-k", "threshold", "power", "softmax", "soft-rank"] = "top-k"
    beta: float = Field(default=1.0, ge=0, description="Coldness of a stochastic draw: 0 uniform, inf top-k.")
    count: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Keep scores at or above it (kind: threshold)."
    )
    per: str | None = Field(default=None, description="Choose `count` or `fraction` in each value of this column.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.kind == "threshold":
            if self.threshold is None or self.count is not None or self.fraction is not None:
                raise ValueError("kind: threshold takes `threshold`, and neither `count` nor `fraction`")
            if self.per is not None:
                raise ValueError("kind: threshold is the same in every group: leave out `per`")
        elif self.threshold is not None:
            raise ValueError(f"`threshold` goes with kind: threshold, not with kind: {self.kind}")
        elif (self.count is None) == (self.fraction is None):
            raise ValueError("give either `count` or `fraction`")
        return self


class Dedup(_Step):
    """Keep the first of rows whose text is the same."""

    step: Literal["dedup"]
    column: str = "text"


class Embed(_Step):
    """Embed texts with a teacher, for the ``b3`` step; rows whose vector is zero or not finite are bad rows."""

    step: Literal["embed"]
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


class MineB3(_Step):
    """B3: group rows into batches of hard negatives. The last step: the shards are laid out in its order."""

    step: Literal["b3"]
    queries: str = Field(default="query", description="A column that `embed` embedded, or one of vectors.")
    positives: str = Field(default="positive", description="A column that `embed` embedded, or one of vectors.")
    batch_size: int = Field(default=1024, ge=2)
    cluster_size: int = Field(default=32, ge=1)
    ranks: tuple[int, int] = Field(default=(30, 130), description="First rank kept, and the one after the last.")
    edges: Literal["mutual", "either"] = "mutual"
    partitioner: Literal["kaminpar", "metis", "louvain"] = "kaminpar"
    negatives: int = Field(default=0, ge=0, description="Explicit hard negatives for each row (B3++).")
    similarity_ceiling: float | None = Field(default=None, allow_inf_nan=False)
    positive_margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    duplicates: Literal["apart", "ignore"] = Field(
        default="apart", description="Whether rows of an equal query or positive are kept out of one batch."
    )
    groups: str | None = Field(default=None, description="Rows with one value of this column never share a batch.")
    datasets: str | None = Field(default=None, description="Batches stay within one value of this column.")
    last: Literal["keep", "drop"] = "keep"
    metric: Literal["ip", "l2"] = "ip"
    engine: Literal["auto", "torch-cuda", "torch-cpu", "faiss-gpu", "faiss-flat", "faiss-ivf", "faiss-hnsw"] = "auto"
    part_rows: int = Field(default=500_000, ge=1, description="Rows of the database that one task searches.")
    cell_rows: int = Field(
        default=2_000_000,
        ge=1,
        description="With more rows the graph is cut within cells (k-means) of at most so many, one task a cell.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.cluster_size:
            raise ValueError(
                f"`batch_size` must be a multiple of `cluster_size`, not {self.batch_size} with {self.cluster_size}"
            )
        if not 0 <= self.ranks[0] < self.ranks[1]:
            raise ValueError(f"`ranks` must be [first, end] with 0 <= first < end, not {list(self.ranks)}")
        if self.positive_margin is not None and self.metric == "l2":
            raise ValueError("`positive_margin` needs metric: ip, as a share of a distance has no such meaning")
        if self.cell_rows < self.cluster_size:
            raise ValueError("`cell_rows` must be at least `cluster_size`")
        return self


Step = Annotated[Align | Score | Acquire | Dedup | Embed | MineB3, Field(discriminator="step")]


class Output(_Model):
    """How the result is laid out."""

    rows_per_shard: int = Field(default=50_000, ge=1)


class Recipe(_Model):
    """Source, steps, output."""

    source: Source
    steps: list[Step] = Field(min_length=1)
    output: Output = Output()
    seed: int = Field(default=0, ge=0)
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    block_rows: int = Field(
        default=16_384,
        ge=1,
        description="Rows of one task. Part of the recipe: resuming rests on fixed blocks.",
    )

    @model_validator(mode="after")
    def _order(self) -> Self:
        check_order(self.steps)
        return self

    def sha256(self) -> str:
        """The hash of what decides the result; resources do not."""
        payload = self.model_dump(mode="json")
        for step in payload["steps"]:
            step.pop("resources")
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


class StepOrderError(ValueError):
    """A step lacks what the steps before it should have made. ``number`` is the step's, from 1."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def check_order(steps: Sequence[Step]) -> None:
    """Check that each step finds what it needs.

    Raises:
        StepOrderError: says which step, what it lacks and why.
    """
    scores: list[str] = []
    embedded: dict[str, int] = {}
    for number, step in enumerate(steps, 1):
        label = f"step {number} ({step.step})"
        if number > 1 and isinstance(steps[number - 2], MineB3):
            raise StepOrderError(
                number,
                f"{label} stands after b3, which groups the rows that are left into batches and lays them out: "
                "nothing may change them then. Put it before",
            )
        if isinstance(step, Align | Score):
            if step.name in scores:
                raise StepOrderError(
                    number,
                    f"{label} makes the score {step.name!r}, which an earlier step has made: "
                    "give one of them another `name`",
                )
            scores.append(step.name)
        elif isinstance(step, Acquire):
            if not scores:
                raise StepOrderError(
                    number,
                    f"{label} has no score to choose by: put an `align` or `score` step before it",
                )
            if step.score is not None and step.score not in scores:
                raise StepOrderError(
                    number,
                    f"{label} chooses by {step.score!r}, but the steps before it make only {', '.join(scores)}",
                )
        elif isinstance(step, Embed):
            twice = [name for name in step.columns if name in embedded]
            if twice:
                raise StepOrderError(number, f"{label} embeds {twice[0]!r}, which step {embedded[twice[0]]} has done")
            embedded.update(dict.fromkeys(step.columns, number))
        elif isinstance(step, MineB3):
            for name in (step.queries, step.positives):
                embedded.pop(name, None)
    if embedded:
        name, number = next(iter(embedded.items()))
        raise StepOrderError(
            number, f"step {number} (embed) embeds {name!r}, which no later `b3` step uses: add one, or leave it out"
        )
