"""Shards in the order of a plan: an external shuffle in two passes, in memory of a block and of a shard.

First each block of the source is read once and its kept rows are put into one file, a record batch for each shard
that they go to, in the order of that shard. Then each shard gathers its record batches. Both passes leave a file
for each piece, and the bytes depend on the plan alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.arrow import reordered, widened
from curation.dataset.writer import BATCH_ROWS, shard_name, shard_schema, write_shard
from curation.files import atomic
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.output.shards import Shard, finish_shard, kept_rows
from curation.plan import BatchPlan
from curation.sources.base import Block, Source

PLACE = "place in the shard (curation)"
"""A column beside the source's, whose names it must not meet."""


def cut_by_batches(plan: Path, rows_per_shard: int) -> list[Shard]:
    """Shards of whole batches, of at most ``rows_per_shard`` rows unless one batch has more."""
    ends = BatchPlan.load(plan).offsets[1:]
    shards: list[Shard] = []
    start = 0
    while start < ends[-1]:
        whole = int(np.searchsorted(ends, start + rows_per_shard, "right")) - 1
        stop = int(ends[max(whole, int(np.searchsorted(ends, start, "right")))])
        shards.append(Shard(len(shards), start, stop - start))
        start = stop
    return shards


@dataclass(frozen=True)
class Places:
    """Where each kept position goes: write ``positions.npy``, rising, and ``places.npy`` beside it."""

    kept: Path
    stage: Stage

    def __call__(self) -> None:
        kept = np.load(self.kept)
        order = np.argsort(kept)
        save(self.stage.folder / "positions.npy", kept[order])
        save(self.stage.folder / "places.npy", order)


@dataclass(frozen=True)
class Scatter:
    """Cut the kept rows of a block by the shard they go to."""

    source: Source
    scores: dict[str, Stage]
    stage: Stage
    shards: Sequence[Shard]

    def __call__(self, block: Block) -> None:
        positions = np.load(self.stage.folder / "positions.npy", mmap_mode="r")
        low, high = np.searchsorted(positions, [block.start, block.start + block.rows])
        here = np.asarray(positions[low:high])
        places = np.asarray(np.load(self.stage.folder / "places.npy", mmap_mode="r")[low:high])
        order = np.argsort(places)
        here, places = here[order], places[order]
        schema = _wide(shard_schema(self.source.schema, list(self.scores)))
        bounds = np.searchsorted(
            places, [*(shard.start for shard in self.shards), self.shards[-1].start + self.shards[-1].rows]
        )
        going = np.flatnonzero(np.diff(bounds))
        told = {"shards": json.dumps(going.tolist())}
        with (
            atomic(self.stage.piece(block.number, "arrow")) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, schema.with_metadata(told)) as writer,
        ):
            if len(here):
                table = kept_rows(self.source, block, here, self.scores).append_column(PLACE, pa.array(places))
                whole = table.cast(schema).combine_chunks().to_batches()[0]
                for shard in going.tolist():
                    writer.write_batch(whole.slice(bounds[shard], bounds[shard + 1] - bounds[shard]))


@dataclass(frozen=True)
class JoinShard:
    """Put a shard together from what the blocks hold for it."""

    source: Source
    blocks: Sequence[Block]
    scores: dict[str, Stage]
    scattered: Stage
    stage: Stage
    dataset: Path
    shards: int

    def __call__(self, shard: Shard) -> None:
        schema = shard_schema(self.source.schema, list(self.scores))
        batches = [batch for block in self.blocks if (batch := self._read(block, shard.number)) is not None]
        table = pa.Table.from_batches(batches, _wide(schema))
        order: npt.NDArray[np.int64] = np.argsort(table[PLACE].to_numpy())
        table = table.drop_columns([PLACE])
        rows = reordered(table, order, BATCH_ROWS)
        write_shard(self.dataset / shard_name(shard.number, self.shards), schema, rows)
        finish_shard(self.stage, self.dataset, shard, self.shards)

    def _read(self, block: Block, shard: int) -> pa.RecordBatch | None:
        with pa.memory_map(str(self.scattered.piece(block.number, "arrow"))) as file:
            reader = pa.ipc.open_file(file)
            going = json.loads(reader.schema.metadata[b"shards"])
            batch = reader.get_batch(going.index(shard)) if shard in going else None
        return None if batch is None else batch.replace_schema_metadata(None)


def _wide(schema: pa.Schema) -> pa.Schema:
    # Text of a whole shard may pass 2 GiB.
    return widened(schema).append(pa.field(PLACE, pa.int64()))
