"""Arrow: what a column's type says of it, rows by position over record batches, and matrices in files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from curation.columns import is_list, is_string, plain
from curation.files import atomic

TAKEN_ROWS = 1000


def widened(schema: pa.Schema) -> pa.Schema:
    """The schema with 64-bit offsets for text and bytes: with 32-bit ones a column ends at 2 GiB."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return pa.schema([field.with_type(wide.get(field.type, field.type)) for field in schema])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, dictionary-encoded or not."""
    return is_string(plain(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a score: integers, floats and booleans."""
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type holds vectors: lists of floats, of fixed size or not."""
    return bool((is_list(kind) or types.is_fixed_size_list(kind)) and types.is_floating(kind.value_type))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a type has strings in it, at any depth."""
    return is_string(kind) or any(holds_text(kind.field(number).type) for number in range(kind.num_fields))


def take_rows(
    positions: npt.NDArray[np.int64], schema: pa.Schema, batches: Iterable[tuple[int, pa.RecordBatch]]
) -> pa.Table:
    """Rows by position, in the order asked.

    Args:
        positions: int64[k], in range; one may come up more than once.
        schema: that of the record batches.
        batches: record batches, each with the position of its first row. Those without a row asked for may be left
            out.

    Returns:
        k rows, copied: memory of these rows, three times over where they are not asked for in rising order.

    Raises:
        EOFError: the batches lack some of the rows.
    """
    rising, order = np.unique(positions, return_inverse=True)
    taken = []
    for start, batch in batches:
        low, high = np.searchsorted(rising, [start, start + batch.num_rows])
        if low < high:
            taken.append(batch.take(pa.array(rising[low:high] - start)))
    table = pa.Table.from_batches(taken, schema)
    if len(table) != len(rising):
        raise EOFError(f"{len(rising) - len(table):,} of {len(rising):,} rows are missing")
    if np.array_equal(rising, positions):
        return table
    # Arrow takes from one chunk for each column, and the text of all rows may pass 2 GiB.
    whole = table.cast(widened(schema)).combine_chunks()
    parts = [order[start : start + TAKEN_ROWS] for start in range(0, len(order), TAKEN_ROWS)]
    return pa.concat_tables([whole.take(pa.array(part)).cast(schema) for part in parts])


def save_matrices(path: Path, matrices: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays [rows, D ≥ 1] of as many rows each, atomically: one record batch, a column for each array."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])
        for matrix in matrices.values()
    ]
    batch = pa.record_batch(columns, names=list(matrices))
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as file:
        file.write_batch(batch)


def load_matrix(path: Path, name: str) -> npt.NDArray[Any]:
    """One array [rows, D] that :func:`save_matrices` wrote, mapped and read only."""
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file).get_batch(0).column(name)
    matrix: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return matrix
