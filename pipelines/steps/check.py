"""Check before the first step: every column of every row is read once, and bad rows are written down."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dataset.writer import decisions_schema
from curation.errors import RecipeError
from curation.features import datasets_features
from curation.pipelines.engine.fingerprints import code
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.base import FIRST_REASON, Kind, Step, write_bad_rows
from curation.recipe.model import Made
from curation.sources.base import BadRow, Block, Source

ADDED = ("_index", "_weight")
"""Columns that the output adds to the source's."""

MOST_REASONS = int(np.iinfo(np.int8).max) - FIRST_REASON + 1
"""Why a row is out is an int8."""


def check_columns(
    steps: Sequence[Step], schema: pa.Schema, *, stops: bool = False, replayed: Collection[int] = ()
) -> dict[str, tuple[Kind, ...]]:
    """Check that every column a step reads is there and fits, and that nothing that is added is there already.

    Args:
        stops: whether a row that a step cannot use will stop the run.
        replayed: numbers of steps that do not run, as what they said is stored: their code may be gone.

    Returns:
        What each column must hold in every row.

    Raises:
        RecipeError: a name is taken, a function cannot be imported, or a step could stop the run after the others.
        SourceError: a column is missing, or of another type, or of one that the output cannot have.
    """
    _check_names(steps)
    for name in (*ADDED, *(name for step in steps for name in step.scores)):
        if name in schema.names:
            raise RecipeError(
                f"the source has a column {name!r}, and the output adds one of that name: "
                "give the step another `name`, or the column, by `columns` of the source"
            )
    datasets_features(schema)
    made, required = Made(stops=stops), dict[str, tuple[Kind, ...]]()
    for number, step in enumerate(steps, 1):
        if number not in replayed:
            step.check(f"step {number} ({step.step})", schema, made)
        for column, kind in step.reads(made).items():
            if kind.bad is not None and kind not in required.get(column, ()):
                required[column] = (*required.get(column, ()), kind)
        step.follow(made, number)
    return required


def kind_key(kind: Kind) -> dict[str, Any]:
    """What the bad rows of a kind depend on."""
    module = kind.bad.__module__ if kind.bad is not None else ""
    ours = module.partition(".")[0] in ("", "curation")
    return {"words": kind.words, "reason": kind.reason, "code": {} if ours else code(f"{module}:")}


def _check_names(steps: Sequence[Step]) -> None:
    """Check that ``decisions.arrow`` can tell all scores and all reasons apart."""
    taken = (*ADDED, *decisions_schema([]).names)
    for number, step in enumerate(steps, 1):
        for name in step.scores:
            if name in taken:
                raise RecipeError(
                    f"step {number} ({step.step}) makes a score {name!r}, but decisions have a column of that name: "
                    "give it another `name`"
                )
        if len(set(step.reasons)) < len(step.reasons):
            raise RecipeError(f"step {number} ({step.step}) has a reason twice: {', '.join(step.reasons)}")
    reasons = sum(len(step.reasons) for step in steps)
    if reasons > MOST_REASONS:
        raise RecipeError(
            f"the steps have {reasons} reasons, and decisions can tell {MOST_REASONS} apart: count what falls under "
            "one reason in a verdict's `counts`"
        )


@dataclass(frozen=True)
class Check:
    """Read every column of a block once, and write down its bad rows."""

    source: Source
    stage: Stage
    required: Mapping[str, tuple[Kind, ...]]
    quarantine: bool

    def __call__(self, block: Block) -> None:
        table, bad = self.source.read(block)
        known = {row.index for row in bad}
        for column in sorted(self.required):
            for kind in self.required[column]:
                assert kind.bad is not None
                bad += self._rows(block, kind.bad(table[column]), f"column {column!r}: {kind.reason}", known)
        write_bad_rows(self.stage, block, bad, quarantine=self.quarantine)

    def _rows(self, block: Block, mask: npt.NDArray[np.bool_], reason: str, known: set[int]) -> list[BadRow]:
        rows = []
        for index in (block.start + np.flatnonzero(mask)).tolist():
            if index not in known:
                known.add(index)
                file, row = self.source.locate(index)
                rows.append(BadRow(index, file, row, reason))
        return rows
