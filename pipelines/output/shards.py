"""The finished dataset's files: shards, decisions, and what ``datasets`` needs to open them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dataset.manifest import FileRecord, decisions_schema, sha256_of
from curation.files import atomic, write_text
from curation.pipelines.engine.workspace import Stage
from curation.sources.base import Block, Source

BATCH_ROWS = 1000


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
        with (
            atomic(self.dataset / shard_name(shard.number, self.shards)) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            for table in self._tables(np.asarray(positions)):
                writer.write_table(table.cast(schema), max_chunksize=BATCH_ROWS)
        finish_shard(self.stage, self.dataset, shard, self.shards)

    def _tables(self, positions: npt.NDArray[np.int64]) -> Any:
        starts = np.array([block.start for block in self.blocks])
        bounds = np.searchsorted(positions, np.append(starts, starts[-1] + self.blocks[-1].rows))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            block = self.blocks[number]
            here = positions[bounds[number] : bounds[number + 1]]
            yield kept_rows(self.source, block, here, self.scores)


def shard_name(number: int, shards: int) -> str:
    """What ``datasets`` calls shard ``number`` of so many."""
    return f"data-{number:05d}-of-{shards:05d}.arrow"


def finish_shard(stage: Stage, dataset: Path, shard: Shard, shards: int) -> None:
    """Hash a written shard and mark it as done."""
    name = shard_name(shard.number, shards)
    path = dataset / name
    record = FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path), rows=shard.rows)
    write_text(stage.piece(shard.number, "json"), json.dumps({name: record.model_dump()}))


def kept_rows(source: Source, block: Block, positions: npt.NDArray[np.int64], scores: dict[str, Stage]) -> pa.Table:
    """Rows of a block by position, in that order, with ``_index``, ``_weight`` and their scores."""
    local = positions - block.start
    table, _ = source.read(block)
    table = table.take(pa.array(local))
    table = table.append_column("_index", pa.array(positions))
    table = table.append_column("_weight", pa.array(np.ones(len(positions), np.float32)))
    for name, stage in scores.items():
        found = np.load(stage.piece(block.number), mmap_mode="r")[local]
        table = table.append_column(name, pa.array(found, from_pandas=True))
    return table


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
    codes_of = np.load(reason, mmap_mode="r")
    schema = decisions_schema(list(scores))
    picked = Lookup.from_order(np.load(pick) if pick else np.empty(0, np.int64))
    twins = np.concatenate([np.empty((0, 2), np.int64), *map(np.load, duplicates)])
    twins = twins[np.argsort(twins[:, 0])]
    leader = Lookup(twins[:, 0], twins[:, 1])
    names = pa.array(reasons)
    with atomic(target) as path, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in blocks:
            codes = np.asarray(codes_of[block.start : block.start + block.rows])
            index = np.arange(block.start, block.start + block.rows)
            kept = codes == 0
            columns = [
                pa.array(index),
                *(pa.array(np.load(stage.piece(block.number)), from_pandas=True) for stage in scores.values()),
                pa.array(kept),
                pa.DictionaryArray.from_arrays(pa.array(codes), names),
                pa.array(kept.astype(np.float32)),
                picked.column(index, kept),
                leader.column(index, ~kept),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


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
        found = np.zeros(len(index), bool)
        here = self.positions[low:high] - index[0]
        values[here] = self.values[low:high]
        found[here] = True
        return pa.array(values, mask=~(found & mask))


def shard_schema(source: pa.Schema, scores: Sequence[str]) -> pa.Schema:
    """The source's columns, then ``_index``, ``_weight`` and the scores."""
    fields = [
        *source.remove_metadata(),
        pa.field("_index", pa.int64()),
        pa.field("_weight", pa.float32()),
        *(pa.field(name, pa.float64()) for name in scores),
    ]
    return pa.schema(fields)


def write_dataset_files(folder: Path, schema: pa.Schema, shards: Sequence[str], fingerprint: str) -> None:
    """Write ``dataset_info.json`` and ``state.json`` as ``datasets.load_from_disk`` reads them."""
    from datasets import DatasetInfo, Features

    info = DatasetInfo(features=Features.from_arrow_schema(schema))
    write_text(folder / "dataset_info.json", json.dumps(_without_none(info), indent=2, sort_keys=True))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(folder / "state.json", json.dumps(state, indent=2, sort_keys=True))


def _without_none(info: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: value for key, value in asdict(info).items() if value is not None}
