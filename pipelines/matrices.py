"""Matrices in Arrow: one record batch, a column of lists of fixed size for each, read without a copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.files import atomic


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
