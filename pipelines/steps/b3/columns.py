"""Columns of vectors in the source of a ``b3`` step, which no step before it embedded: copied block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import StepError
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.embed import write_vectors
from curation.sources.base import Block, Source

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CopyVectors:
    """Take the vectors of a block from columns of the source."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    widths: Mapping[str, int]
    reason: Path
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        table, _ = self.source.read(block, tuple(self.columns))
        table = table.filter(pa.array(inside))
        vectors = {name: _lists(table[name], self.widths[name]) for name in self.columns}
        write_vectors(self.source, self.stage, self.columns, block, inside, vectors, "the vector", self.quarantine)


def vector_width(source: Source, blocks: Sequence[Block], column: str) -> int:
    """D of a column of vectors: that of its type, or of its first row that is not null.

    Raises:
        StepError: no row has a vector.
    """
    kind = source.schema.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for block in blocks:
        lengths = source.read(block, (column,))[0][column].combine_chunks().value_lengths().drop_null()
        if len(lengths) and lengths[0].as_py():
            return int(lengths[0].as_py())
    raise StepError(f"column {column!r} holds no vector")


def _lists(column: pa.ChunkedArray, width: int) -> Float32:
    """float32[rows, width]; a row of NaN for what is null or of another length."""
    values = column.combine_chunks()
    out = np.full((len(values), width), np.nan, np.float32)
    if pa.types.is_fixed_size_list(values.type):
        good = values.is_valid().to_numpy(zero_copy_only=False)
    else:
        good = values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) == width
    flat = values.filter(pa.array(good)).flatten()
    out[good] = flat.cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return out
