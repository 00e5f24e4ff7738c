"""Bad rows of typed columns: values that do not fit the type they are read as, and text that is not UTF-8.

Both are found by halving: O(bad · log rows) tries on a column that has any, one on a column that has none.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from curation.arrow import holds_text
from curation.columns import convert, is_string
from curation.sources.base import raw_text

Bad = tuple[int, str, str | None]
"""The number of a row among those at hand, why it is bad, and what stood there."""


def converted(columns: Sequence[pa.Array], schema: pa.Schema) -> tuple[pa.RecordBatch, list[Bad]]:
    """Columns in the types of a schema, as many as it has; rows that do not fit are null, and in the list."""
    bad: dict[int, Bad] = {}
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        try:
            array = convert(column, field.type)
        except pa.ArrowInvalid:
            rows = _failing(column, partial(_fits, kind=field.type))
            for row in rows:
                reason = f"column {field.name!r}: this {column.type} does not fit {field.type}"
                bad.setdefault(row, (row, reason, _raw(column, row)))
            array = convert(_nulled(column, rows), field.type)
        if holds_text(field.type) and not _is_valid(array):
            for row in _failing(array, _is_valid if is_string(array.type) else _is_valid_alone):
                bad.setdefault(row, (row, f"column {field.name!r}: invalid UTF-8", _raw(array, row)))
        arrays.append(array)
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return (_nulled(batch, list(bad)) if bad else batch), [bad[row] for row in sorted(bad)]


def _failing(column: pa.Array, passes: Callable[[pa.Array], bool]) -> list[int]:
    """The rows without which a column passes."""
    found: list[int] = []
    spans = [(0, len(column))]
    while spans:
        start, size = spans.pop()
        if not passes(column.slice(start, size)):
            if size == 1:
                found.append(start)
            else:
                half = size // 2
                spans += [(start, half), (start + half, size - half)]
    return sorted(found)


def _fits(column: pa.Array, kind: pa.DataType) -> bool:
    try:
        convert(column, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            return False
        raise
    return True


def _is_valid_alone(column: pa.Array) -> bool:
    """The same of a slice of lists, which holds the values of all the lists: its own are copied out first."""
    return _is_valid(pa.concat_arrays([column.take(pa.array(np.arange(len(column))))]))


def _nulled(rows: pa.Array, bad: list[int]) -> pa.Array:
    """An array or a record batch with nulls in some rows."""
    mask = np.zeros(len(rows), bool)
    mask[bad] = True
    return rows.take(pa.array(np.arange(len(rows)), mask=mask))


def _raw(column: pa.Array, row: int) -> str | None:
    if not is_string(column.type):
        return None
    return raw_text(column.slice(row, 1).cast(pa.large_binary())[0].as_py())
