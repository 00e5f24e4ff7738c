"""Rows of a shard that one block, or one batch, of 32-bit offsets could not hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import arrow
from curation.arrow import contiguous
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.output.ordered import JoinShard, Places, Scatter
from curation.pipelines.output.shards import Shard, WriteShard, kept_rows
from curation.recipe import FileSource
from curation.sources import open_source


@pytest.mark.parametrize("most", [1, 2000, 1 << 28])
def test_shards_hold_the_same_rows_however_small_the_pieces(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "PIECE_BYTES", most)
    table = pa.table(
        {"text": [f"{row}" * (row % 40) for row in range(200)], "words": [["w"] * (row % 5) for row in range(200)]}
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=60)
    source = open_source(FileSource(format="parquet", path=str(tmp_path / "rows.parquet")))
    blocks = source.blocks(90)
    kept = np.random.default_rng(0).permutation(200)[:120]
    written, scattered, dataset = Stage(tmp_path / "w"), Stage(tmp_path / "s"), tmp_path / "dataset"
    dataset.mkdir()
    shards = [Shard(0, 0, 70), Shard(1, 70, 50)]

    np.save(tmp_path / "kept.npy", np.sort(kept))
    for shard in shards:
        WriteShard(source, blocks, tmp_path / "kept.npy", {}, written, dataset, 2)(shard)
    assert rows(dataset) == table.take(np.sort(kept)).to_pylist()

    np.save(tmp_path / "kept.npy", kept)
    Places(tmp_path / "kept.npy", scattered)()
    for block in blocks:
        Scatter(source, {}, scattered, shards)(block)
    for shard in shards:
        JoinShard(source, blocks, {}, scattered, written, dataset, 2)(shard)
    assert rows(dataset) == table.take(kept).to_pylist()


def rows(dataset: Path) -> list[dict[str, object]]:
    tables = [pa.ipc.open_stream(path.read_bytes()).read_all() for path in sorted(dataset.glob("*.arrow"))]
    return pa.concat_tables(tables).drop_columns(["_index", "_weight"]).to_pylist()


@pytest.mark.slow
def test_rows_of_140_kilobytes(tmp_path: Path) -> None:
    path, schema = tmp_path / "rows.parquet", pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="zstd") as file:
        for _ in range(17):
            file.write_table(pa.table({"text": ["x" * 140_000] * 1000}))
    source = open_source(FileSource(format="parquet", path=str(path)))
    assert {block.rows * 140_000 < 1 << 28 for block in source.blocks(16_384)} == {True}

    whole = source.blocks(17_000, 1 << 40)
    assert len(whole) == 1
    table = kept_rows(source, whole[0], np.arange(17_000), {})
    assert sum(part.num_rows for part in contiguous(table)) == 17_000
