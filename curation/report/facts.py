"""Facts for the report beyond ``decisions.arrow``: the mix of sources, and texts of the rows worth looking at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.arrow import is_text
from curation.dataset import Dataset
from curation.dataset.decisions import acquire_steps
from curation.dataset.explain import Row, find_rows
from curation.errors import CurationError

SHOWN_ROWS = 5
MIX_ROWS = 5_000_000
MIX_VALUES = 1000
MIX_COLUMNS = ("source", "dataset", "package", "domain", "language", "lang", "category", "subset", "label")
NONE = "(none)"


@dataclass(frozen=True)
class Mix:
    """Rows by value of one column; ``before`` is None where the source was not counted, and ``note`` says why."""

    column: str
    before: dict[str, int] | None
    after: dict[str, int]
    note: str | None


@dataclass(frozen=True)
class Shown:
    """Positions by group (see :meth:`Decisions.extremes`), the decisions on them, and their columns where readable."""

    score: str
    number: int | None
    groups: dict[str, list[int]]
    decided: dict[int, dict[str, Any]]
    rows: dict[int, Row]
    text: str | None
    note: str | None


def count_mix(dataset: Dataset) -> Mix | None:
    """Count a column that tells where rows come from: one the recipe groups by, one with a usual name, or the first
    column of text with few values. None where there is no such column."""
    texts = [field.name for field in dataset.schema if is_text(field.type) and field.name != dataset.text_column]
    grouped = [step["per"] for step in acquire_steps(dataset.manifest).values() if step["per"]]
    for name in dict.fromkeys([*(name for name in (*grouped, *MIX_COLUMNS) if name in texts), *texts]):
        after = _count(batch.column(0) for batch in dataset.batches([name]))
        if after is None:
            continue
        before, note = _before(dataset, name)
        if (before or note) and len(before or after) > 1:
            return Mix(name, before, after, note)
    return None


def pick_rows(dataset: Dataset) -> Shown | None:
    """The best, borderline and worst rows by the score of the last step that cut, or by the last score."""
    if not dataset.score_names:
        return None
    steps = acquire_steps(dataset.manifest)
    number = max(steps, default=None)
    score = dataset.score_names[-1] if number is None else steps[number]["score"]
    groups = dataset.decisions.extremes(score, number or 0, SHOWN_ROWS)
    if number is None:
        del groups["just in"], groups["just out"]
    indices = sorted({index for group in groups.values() for index in group})
    rows, note = find_rows(dataset, indices, trust=True)
    return Shown(score, number, groups, dataset.decisions.rows(indices), rows, dataset.text_column, note)


def _before(dataset: Dataset, name: str) -> tuple[dict[str, int] | None, str | None]:
    """Counts in the source, or why there are none; neither where the column has too many values."""
    if dataset.manifest.rows_in > MIX_ROWS:
        return None, f"The source has more than {MIX_ROWS:,} rows: only what was kept is counted."
    try:
        source, blocks = dataset.candidates()
        return _count(source.read(block, [name])[0].column(name) for block in blocks), None
    except (CurationError, ValueError) as error:
        return None, f"The source cannot be read any more: {error}"


def _count(columns: Iterable[pa.Array | pa.ChunkedArray]) -> dict[str, int] | None:
    """Rows by value; None where there are so many values that the column says little."""
    counts: dict[str, int] = {}
    for column in columns:
        for entry in pc.value_counts(column).to_pylist():
            value = NONE if entry["values"] is None else entry["values"]
            counts[value] = counts.get(value, 0) + entry["counts"]
        if len(counts) > MIX_VALUES:
            return None
    return counts
