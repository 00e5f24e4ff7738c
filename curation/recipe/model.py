"""Recipes in memory: a source, steps, an output.

The steps themselves, with their parameters, live in :mod:`curation.pipelines.steps`; a recipe finds them by name.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

BLOCK_BYTES = 1 << 28
"""Bytes of the rows of one task, unless a recipe says otherwise."""

STEPS = "curation.pipelines.steps"
"""Where steps are looked up: by name, because what stands here does not import what stands above it."""


class Model(BaseModel):
    """Base of all parts of a recipe: an unknown key is an error, and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class FileSource(Model):
    """Files of rows: Parquet, Arrow IPC (file or stream), JSON lines (plain or gzip), a saved HF dataset."""

    # pydantic's models have a `schema` of old, so the attribute is called otherwise.
    model_config = ConfigDict(populate_by_name=True)

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
    types: dict[str, str] | None = Field(
        default=None,
        alias="schema",
        min_length=1,
        description="Types of columns, as name: type, such as int64 or list<string>. A value that does not fit is a "
        "bad row. Default: the types that the files have; in JSON lines those that hold all values.",
    )

    @field_validator("path")
    @classmethod
    def _listed(cls, path: str | list[str]) -> list[str]:
        # One path and a list of one are the same source, and so must have the same hash.
        return [path] if isinstance(path, str) else path

    @model_validator(mode="after")
    def _typed(self) -> Self:
        if self.types is not None:
            from curation.columns import type_of

            for name, kind in self.types.items():
                if self.columns is not None and name not in self.columns:
                    raise ValueError(f"`schema` names {name!r}, which `columns` leaves out")
                type_of(kind)
        return self

    def resolved(self, folder: Path) -> "FileSource":
        """With its relative paths resolved against a folder."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        absolute = [path if "://" in path else str(folder / Path(path).expanduser()) for path in paths]
        return self.model_copy(update={"path": absolute})


class StdlibSource(Model):
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


class MemorySource(Model):
    """Rows that a program handed to :func:`curation.pipelines.run`: a record of them, not the rows themselves."""

    format: Literal["memory"]
    kind: str = Field(description="What they were, such as pyarrow.Table.")
    rows: int = Field(ge=0)
    fingerprint: str = Field(description="sha256:… of the rows, written as Arrow.")


SourceSpec = Annotated[FileSource | StdlibSource | MemorySource, Field(discriminator="format")]


class Resources(Model):
    """What one Ray task asks for."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_mib: int | None = Field(default=None, gt=0)


@dataclass
class Made:
    """What the steps of a recipe make, up to one of them.

    Args:
        scores: the step, from 1, that makes each score column, in the order of the steps.
        vectors: the step that embeds each column.
        unused: the columns of vectors that no step has read yet.
        last: the step that lays out the rows, after which nothing may come.
        signed: scores that may be negative.
        stops: whether a row that a later step cannot use will stop the run, after all that was made before.
    """

    scores: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    last: str | None = None
    signed: set[str] = field(default_factory=set)
    stops: bool = False


class RecipeStep(Protocol):
    """What a recipe asks of its steps; :class:`curation.pipelines.Step` has it."""

    @property
    def step(self) -> str:
        """Its name in a recipe."""

    def follow(self, made: Made, number: int) -> None:
        """Add what it makes; raises ``ValueError`` where the steps before it lack something."""

    def resolved(self, folder: Path) -> Self:
        """With its relative paths resolved against a folder."""


class _StepField:
    """A field that holds any step: ours by its name, anybody's as ``module:Class``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_parse, core_schema.any_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described: dict[str, Any] = import_module(STEPS).json_schema(handler)
        return described


def _parse(value: Any) -> Any:
    return import_module(STEPS).parse_step(value)


class Output(Model):
    """How the result is laid out."""

    rows_per_shard: int = Field(default=50_000, ge=1)
    resources: Resources = Field(default=Resources(), description="Of the tasks that write the result.")


class Recipe(Model):
    """Source, steps, output."""

    source: SourceSpec
    steps: list[Annotated[RecipeStep, _StepField()]] = Field(min_length=1)
    output: Output = Output()
    seed: int = Field(default=0, ge=0)
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    block_rows: int = Field(
        default=16_384,
        ge=1,
        description="Rows of one task at most. Part of the recipe: resuming rests on fixed blocks.",
    )
    block_bytes: int = Field(
        default=BLOCK_BYTES,
        ge=1,
        le=1 << 30,
        description="Bytes of the rows of one task at most, about, as they are in memory. Part of the recipe, too.",
    )
    resources: Resources = Field(default=Resources(), description="Of the tasks that check rows before the first step.")

    @model_validator(mode="after")
    def _order(self) -> Self:
        check_order(self.steps)
        return self

    def resolved(self, folder: Path) -> Self:
        """With its relative paths resolved against a folder."""
        source = self.source.resolved(folder) if isinstance(self.source, FileSource) else self.source
        return self.model_copy(update={"source": source, "steps": [step.resolved(folder) for step in self.steps]})

    def sha256(self) -> str:
        """The hash of what decides the result; resources do not."""
        return recipe_sha256(self.model_dump(mode="json"))


def recipe_sha256(recipe: dict[str, Any]) -> str:
    """:meth:`Recipe.sha256`, of a recipe as it stands in a manifest."""
    decides = {**_decides(recipe), "output": _decides(recipe["output"]), "steps": [*map(_decides, recipe["steps"])]}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _decides(part: dict[str, Any]) -> dict[str, Any]:
    # Recipes of before `block_bytes` keep their hash.
    usual = ("block_bytes", BLOCK_BYTES)
    return {key: value for key, value in part.items() if key != "resources" and (key, value) != usual}


class StepOrderError(ValueError):
    """A step lacks what the steps before it should have made. ``number`` is the step's, from 1."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def check_order(steps: Sequence[RecipeStep]) -> None:
    """Check that each step finds what it needs.

    Raises:
        StepOrderError: says which step, what it lacks and why.
    """
    made = Made()
    for number, step in enumerate(steps, 1):
        try:
            step.follow(made, number)
        except ValueError as error:
            raise StepOrderError(number, f"step {number} ({step.step}) {error}") from error
    for column, number in made.unused.items():
        raise StepOrderError(
            number,
            f"step {number} ({steps[number - 1].step}) embeds {column!r}, which no later `b3` step uses: add one, or "
            "leave it out",
        )
