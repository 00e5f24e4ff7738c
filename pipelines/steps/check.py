"""Check before the first step: every column of every row is read once, and bad rows are written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import RecipeError
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.base import Kind, Step, write_bad_rows
from curation.recipe.model import Made
from curation.sources.base import BadRow, Block, Source

ADDED = ("_index", "_weight")
"""Columns that the output adds to the source's."""


def check_columns(steps: Sequence[Step], schema: pa.Schema) -> dict[str, tuple[Kind, ...]]:
    """Check that every column a step reads is there and fits, and that nothing that is added is there already.

    Returns:
        What each column must hold in every row.

    Raises:
        RecipeError: a name is taken, or a function cannot be imported.
        SourceError: a column is missing, or of another type.
    """
    for name in (*ADDED, *(name for step in steps for name in step.scores)):
        if name in schema.names:
            raise RecipeError(
                f"the source has a column {name!r}, and the output adds one of that name: "
                "give the step another `name`, or the column, by `columns` of the source"
            )
    made, required = Made(), dict[str, tuple[Kind, ...]]()
    for number, step in enumerate(steps, 1):
        step.check(f"step {number} ({step.step})", schema, made)
        for column, kind in step.reads(made).items():
            if kind.bad is not None and kind not in required.get(column, ()):
                required[column] = (*required.get(column, ()), kind)
        step.follow(made, number)
    return required


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
