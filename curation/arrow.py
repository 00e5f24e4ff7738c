"""Arrow: which types hold what, which stand for the same column in different files, and matrices in files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from curation.files import atomic


def plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column is read as: dictionaries and run-ends decoded, views as ordinary arrays."""
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    return kind


def lossless(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of one type has an equal one in the other."""
    found = plain(found)
    if found == wanted or types.is_null(found):
        return True
    if is_text(found) or _is_bytes(found):
        return (is_text(found) and is_text(wanted)) or (_is_bytes(found) and _is_bytes(wanted))
    if types.is_integer(found):
        return _integer_fits(found, wanted)
    if types.is_floating(found):
        return bool(types.is_floating(wanted) and found.bit_width <= wanted.bit_width)
    if _is_list(found) and _is_list(wanted):
        return lossless(found.value_type, wanted.value_type)
    if types.is_struct(found) and types.is_struct(wanted):
        return [field.name for field in found] == [field.name for field in wanted] and all(
            lossless(one.type, other.type) for one, other in zip(found, wanted, strict=True)
        )
    return False


def _integer_fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    signed = types.is_signed_integer(found)
    digits = found.bit_width - signed
    if types.is_floating(wanted):
        return bool(digits <= {16: 11, 32: 24, 64: 53}[wanted.bit_width])
    if not types.is_integer(wanted):
        return False
    wanted_signed = types.is_signed_integer(wanted)
    return bool(digits <= wanted.bit_width - wanted_signed and (wanted_signed or not signed))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a type has strings in it, at any depth."""
    if is_text(kind):
        return True
    return any(holds_text(kind.field(number).type) for number in range(kind.num_fields))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column can be a score."""
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds vectors: lists of floats, of fixed size or not."""
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and types.is_floating(kind.value_type))


def save_matrices(path: Path, matrices: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write [rows, D ≥ 1] arrays of as many rows each, atomically."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])
        for matrix in matrices.values()
    ]
    batch = pa.record_batch(columns, names=list(matrices))
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as file:
        file.write_batch(batch)


def load_matrix(path: Path, name: str) -> npt.NDArray[Any]:
    """One of them, [rows, D], mapped and read only."""
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file).get_batch(0).column(name)
    found: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return found
