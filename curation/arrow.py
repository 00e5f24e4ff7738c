"""Arrow: what a column's type says of it, rows by position over record batches, and matrices in files."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from curation.columns import is_list, is_string, plain
from curation.files import atomic

TAKEN_ROWS = 1000
PIECE_BYTES = 1 << 28
"""Bytes of rows that are put into one array at most: its offsets have 32 bits, and a list may be of bits."""


def widened(schema: pa.Schema) -> pa.Schema:
    """The schema with 64-bit offsets at any depth: with 32-bit ones a column ends at 2 GiB, or 2³¹ items of lists."""
    return pa.schema([_wide_field(field) for field in schema])


def wide(kind: pa.DataType) -> pa.DataType:
    """The type with 64-bit offsets, at any depth."""
    if types.is_string(kind):
        return pa.large_string()
    if types.is_binary(kind):
        return pa.large_binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.large_list(_wide_field(kind.value_field))
    if types.is_fixed_size_list(kind):
        return pa.list_(_wide_field(kind.value_field), kind.list_size)
    if types.is_map(kind):
        return pa.map_(_wide_field(kind.key_field), _wide_field(kind.item_field))
    if types.is_struct(kind):
        return pa.struct([_wide_field(field) for field in kind])
    return kind


def _wide_field(field: pa.Field) -> pa.Field:
    return field.with_type(wide(field.type))


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
        k rows, copied, in as many chunks as it takes: memory of these rows, three times over where they are not asked
        for in rising order.

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
    return pa.concat_tables(reordered(table, order))


def numbered(table: pa.Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches of a table, each with the position of its first row."""
    start = 0
    for batch in table.to_batches():
        yield start, batch
        start += batch.num_rows


def reordered(table: pa.Table, order: npt.NDArray[np.int64], rows: int = TAKEN_ROWS) -> Iterator[pa.Table]:
    """The rows of a table in another order.

    Args:
        table: the rows, in any number of chunks; twice its memory is needed.
        order: int64[k], their positions; one may come up more than once.
        rows: of each table that is given at most; fewer where they have more than :data:`PIECE_BYTES`.
    """
    # Arrow takes from one chunk for each column, and all rows may pass 2 GiB.
    whole = table.cast(widened(table.schema)).combine_chunks()
    parts = [order[start : start + rows] for start in range(0, len(order), rows)][::-1]
    while parts:
        part = parts.pop()
        taken = whole.take(pa.array(part))
        if taken.nbytes > PIECE_BYTES and len(part) > 1:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            yield taken.cast(table.schema).combine_chunks()


def contiguous(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table in their order, in tables of one chunk, of at most :data:`PIECE_BYTES` or of one row."""
    if table.nbytes > PIECE_BYTES and len(table) > 1:
        half = len(table) // 2
        yield from contiguous(table.slice(0, half))
        yield from contiguous(table.slice(half))
    else:
        yield table.combine_chunks()


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
