"""Groups of rows by the values of a column, as ``acquire`` draws in them: of any number of rows, by codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from curation.arrow import wide
from curation.columns import plain
from curation.files import atomic
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import Kind
from curation.sources.base import Block, Source

VALUES = Kind("values that can be compared (not lists, structs or maps)", lambda kind: not types.is_nested(plain(kind)))


@dataclass(frozen=True)
class GroupBlock:
    """The groups of a block's rows: their codes int32[rows], and beside them the values that these stand for."""

    source: Source
    stage: Stage
    column: str

    def __call__(self, block: Block) -> None:
        table, _ = self.source.read(block, (self.column,))
        column = table[self.column]
        encoded = column.cast(wide(column.type)).combine_chunks().dictionary_encode(null_encoding="encode")
        values = pa.record_batch([encoded.dictionary], [self.column])
        with atomic(self.stage.piece(block.number, "arrow")) as path, pa.ipc.new_file(str(path), values.schema) as file:
            file.write_batch(values)
        save(self.stage.piece(block.number), encoded.indices.to_numpy())


def groups_of(stage: Stage, blocks: Sequence[Block], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The groups of all rows, from what :class:`GroupBlock` left; memory of the values that differ.

    Args:
        stage: where it left it.
        blocks: all blocks.
        inside: bool[rows], those that are asked for.

    Returns:
        int64[rows inside], a number for each value; null is a value.
    """
    # Chunk by chunk, but with one dictionary for all.
    groups = pa.chunked_array([_values(stage, block) for block in blocks]).dictionary_encode(null_encoding="encode")
    codes = [np.empty(0, np.int64)]
    for block, group in zip(blocks, groups.iterchunks(), strict=True):
        local = np.load(stage.piece(block.number))[inside[block.start : block.start + block.rows]]
        codes.append(group.indices.to_numpy().astype(np.int64)[local])
    return np.concatenate(codes)


def _values(stage: Stage, block: Block) -> pa.Array:
    with pa.memory_map(str(stage.piece(block.number, "arrow"))) as file:
        return pa.ipc.open_file(file).get_batch(0).column(0)
