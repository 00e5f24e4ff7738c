"""What a recipe's steps ask of the source, checked before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from curation.errors import RecipeError, SourceError
from curation.pipelines.blocks import is_number, is_text, load_function
from curation.pipelines.steps.embed import is_vector
from curation.pipelines.steps.teachers import MODEL
from curation.recipe import Acquire, Align, Dedup, Embed, MineB3, Recipe, Score


def check_columns(recipe: Recipe, schema: pa.Schema) -> tuple[frozenset[str], frozenset[str]]:
    """Check that every column a step reads is there and fits, and that every function can be imported.

    Returns:
        The columns that must hold text, and those that must hold finite numbers, in every row.

    Raises:
        RecipeError: a name is taken, or a function cannot be imported.
        SourceError: a column is missing, or of another type.
    """
    made = [step.name for step in recipe.steps if isinstance(step, Align | Score)]
    for name in ("_index", "_weight", *made):
        if name in schema.names:
            raise RecipeError(
                f"the source has a column {name!r}, and the output adds one of that name: "
                "give the step another `name`, or the column, by `columns` of the source"
            )
    texts, numbers = set(), set()
    embedded = {name for step in recipe.steps if isinstance(step, Embed) for name in step.columns}
    for number, step in enumerate(recipe.steps, 1):
        label = f"step {number} ({step.step})"
        if isinstance(step, Align | Dedup):
            _require(label, step.column, schema, is_text, "text")
            texts.add(step.column)
        elif isinstance(step, Acquire):
            if step.per is not None:
                _require(label, step.per, schema, lambda kind: True, "")
        elif isinstance(step, Embed):
            for name in step.columns:
                _require(label, name, schema, is_text, "text")
            texts.update(step.columns)
            if ":" in step.teacher and not step.teacher.startswith(MODEL):
                load_function(step.teacher, import_path())
        elif isinstance(step, MineB3):
            _check_b3(label, step, embedded, schema)
        elif step.column is not None:
            _require(label, step.column, schema, is_number, "a number")
            numbers.add(step.column)
        else:
            assert step.function is not None
            load_function(step.function, import_path())
    return frozenset(texts), frozenset(numbers)


def vector_columns(recipe: Recipe, step: MineB3) -> list[str]:
    """Columns of a ``b3`` step that hold vectors as they stand in the source."""
    embedded = {name for other in recipe.steps if isinstance(other, Embed) for name in other.columns}
    return [name for name in dict.fromkeys((step.queries, step.positives)) if name not in embedded]


def _check_b3(label: str, step: MineB3, embedded: set[str], schema: pa.Schema) -> None:
    for name in (step.queries, step.positives):
        if name in embedded:
            continue
        _require(label, name, schema, lambda kind: True, "")
        kind = schema.field(name).type
        if is_text(kind):
            raise RecipeError(
                f"{label} reads column {name!r}, which is text that no step before it embeds: "
                "put an `embed` step before it, or name a column of vectors"
            )
        _require(label, name, schema, is_vector, "vectors (lists of floats)")
    for option in (step.groups, step.datasets):
        if option is not None:
            _require(
                label, option, schema, lambda kind: is_text(kind) or pa.types.is_integer(kind), "text or whole numbers"
            )


def import_path() -> tuple[str, ...]:
    """Where a user's ``module:function`` is looked for besides the installed packages: where the command was run."""
    return (str(Path.cwd()),)


def _require(label: str, column: str, schema: pa.Schema, fits: Callable[[pa.DataType], bool], what: str) -> None:
    if column not in schema.names:
        raise SourceError(f"{label} reads column {column!r}, but the source has: {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not fits(kind):
        raise SourceError(f"{label} reads column {column!r} as {what}, but it is {kind}")
