"""Shards and decisions of a run, gathered from the source and from what the stages left for each block."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.arrow import contiguous, numbered, take_rows
from curation.dataset import writer
from curation.dataset.writer import file_record, kept_table, shard_name, shard_schema, write_shard
from curation.files import write_text
from curation.pipelines.engine.workspace import Stage
from curation.sources.base import Block, Source


@dataclass(frozen=True)
class Shard:
    """Rows ``start .. start + rows - 1`` of the kept ones."""

    number: int
    start: int
    rows: int


@dataclass(frozen=True)
class WriteShard:
    """Gather a shard's rows from the source and write them, with position, weight and scores."""

    source: Source
    blocks: Sequence[Block]
    kept: Path
    scores: dict[str, Stage]
    stage: Stage
    dataset: Path
    shards: int

    def __call__(self, shard: Shard) -> None:
        positions = np.load(self.kept, mmap_mode="r")[shard.start : shard.start + shard.rows]
        schema = shard_schema(self.source.schema, list(self.scores))
        path = self.dataset / shard_name(shard.number, self.shards)
        write_shard(path, schema, self._tables(np.asarray(positions)))
        finish_shard(self.stage, self.dataset, shard, self.shards)

    def _tables(self, positions: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
        starts = np.array([block.start for block in self.blocks])
        bounds = np.searchsorted(positions, np.append(starts, starts[-1] + self.blocks[-1].rows))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            block = self.blocks[number]
            here = positions[bounds[number] : bounds[number + 1]]
            yield from contiguous(kept_rows(self.source, block, here, self.scores))


def finish_shard(stage: Stage, dataset: Path, shard: Shard, shards: int) -> None:
    """Hash a written shard and mark it as done."""
    name = shard_name(shard.number, shards)
    record = file_record(dataset / name, shard.rows)
    write_text(stage.piece(shard.number, "json"), json.dumps({name: record.model_dump()}))


def kept_rows(source: Source, block: Block, positions: npt.NDArray[np.int64], scores: dict[str, Stage]) -> pa.Table:
    """Rows of a block by position, in that order, with ``_index``, ``_weight`` and their scores."""
    local = positions - block.start
    table, _ = source.read(block)
    chosen = {name: np.load(stage.piece(block.number), mmap_mode="r")[local] for name, stage in scores.items()}
    return kept_table(take_rows(local, table.schema, numbered(table)), positions, chosen)


def write_decisions(
    target: Path,
    blocks: Sequence[Block],
    scores: dict[str, Stage],
    reason: Path,
    reasons: Sequence[str],
    pick: Path | None,
    duplicates: Sequence[Path],
) -> None:
    """Write a row for each candidate: its scores, whether it was kept, and why."""
    codes = np.load(reason, mmap_mode="r")
    picked = Lookup.from_order(np.load(pick) if pick else np.empty(0, np.int64))
    twins = np.concatenate([np.empty((0, 2), np.int64), *map(np.load, duplicates)])
    twins = twins[np.argsort(twins[:, 0])]
    leader = Lookup(twins[:, 0], twins[:, 1])

    def batch(block: Block) -> pa.RecordBatch:
        code = np.asarray(codes[block.start : block.start + block.rows])
        index = np.arange(block.start, block.start + block.rows)
        made = {name: np.load(stage.piece(block.number)) for name, stage in scores.items()}
        kept = code == 0
        return writer.decisions_batch(
            block.start, code, reasons, made, picked.column(index, kept), leader.column(index, ~kept)
        )

    writer.write_decisions(target, list(scores), map(batch, blocks))


@dataclass(frozen=True)
class Lookup:
    """Values by position, both sorted by position."""

    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]

    @classmethod
    def from_order(cls, order: npt.NDArray[np.int64]) -> "Lookup":
        """The place of each position in an order."""
        places = np.argsort(order)
        return cls(order[places], places)

    def column(self, index: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> pa.Array:
        """int64 with null where there is none, or where ``mask`` is false; ``index`` is a run of positions."""
        low, high = np.searchsorted(self.positions, [index[0], index[-1] + 1])
        values = np.zeros(len(index), np.int64)
        known = np.zeros(len(index), bool)
        local = self.positions[low:high] - index[0]
        values[local] = self.values[low:high]
        known[local] = True
        return pa.array(values, mask=~(known & mask))
