"""The pieces of distributed B3 without Ray: searches and merges, ids, cells, and shards in plan order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.arrow import save_matrices
from curation.pipelines import MineB3
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.output.ordered import JoinShard, Places, Scatter, cut_by_batches
from curation.pipelines.steps.b3.plan import k_means_cells
from curation.pipelines.steps.b3.search import Merge, Search, search_pieces
from curation.pipelines.steps.b3.vectors import Allocate, Gather, KeepApart, Layout, _ids
from curation.plan import BatchPlan
from curation.recipe import FileSource
from curation.selectors.b3 import rank_window, text_ids
from curation.sources import open_source


def mined(tmp_path: Path, rows: int, block_rows: int, order: int, **options: Any) -> tuple[Layout, Any, Any]:
    """Gather, search and merge as a run does, in an order of its own; some rows are out, some vectors equal."""
    rng = np.random.default_rng(9)
    left = rng.normal(size=(rows, 5)).astype(np.float32).round(1)
    right = left[rng.permutation(rows)].copy()
    reason = np.zeros(rows, np.int8)
    reason[::7] = 2
    np.save(tmp_path / "reason.npy", reason)
    texts = [f"t{number % (rows // 2)}" for number in range(rows)]
    pq.write_table(pa.table({"group": texts}), tmp_path / "rows.parquet")
    source = open_source(FileSource(format="parquet", path=str(tmp_path / "rows.parquet")))
    blocks = source.blocks(block_rows)
    vectors = {"queries": Stage(tmp_path / "q"), "positives": Stage(tmp_path / "p")}
    for block in blocks:
        for stage, values in zip(vectors.values(), (left, right), strict=True):
            part = values[block.start : block.start + block.rows]
            save_matrices(stage.piece(block.number, "arrow"), {"vector": part})
    step = MineB3.model_validate({"step": "b3", "batch_size": 8, "cluster_size": 2, "ranks": [2, 9], **options})
    matrices, searches, ranks = (Stage(tmp_path / name) for name in ("m", "s", "r"))
    Allocate(step, matrices, vectors, blocks, tmp_path / "reason.npy")()
    gather = Gather(step, source, matrices, vectors, ("group",), tmp_path / "reason.npy")
    for block in blocks[::order]:
        gather(block)
    KeepApart(step, matrices, blocks, 1)()
    layout = Layout.load(matrices.folder)
    pieces, chunks = search_pieces(step, layout, block_rows)
    for piece in pieces[::order]:
        Search(step, matrices, searches, 0)(piece)
    for chunk in chunks[::order]:
        Merge(step, matrices, searches, ranks, len(pieces) // len(chunks))(chunk)
    inside = np.flatnonzero(reason == 0)
    apart = text_ids([texts[row] for row in inside])
    return layout, (left[inside], right[inside]), apart


@pytest.mark.parametrize("part_rows", [13, 50, 1000])
@pytest.mark.parametrize("options", [{}, {"similarity_ceiling": 1.5, "positive_margin": 0.9}, {"metric": "l2"}])
def test_merged_ranks_are_those_of_one_search(part_rows: int, options: dict[str, Any], tmp_path: Path) -> None:
    layout, (left, right), apart = mined(tmp_path, 120, 32, -1, part_rows=part_rows, **options)
    expected = rank_window(left, right, ranks=(2, 9), apart=layout.ids("apart"), **options)
    np.testing.assert_array_equal(layout.array("near"), expected.near)
    np.testing.assert_array_equal(layout.array("window"), expected.window)
    same = apart[:, None] == apart[np.maximum(layout.array("near"), 0)]
    assert not (same & (layout.array("near") >= 0)).any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=30))
def test_ids_are_in_order_of_appearance(values: list[int]) -> None:
    hashes = np.array([[0, 0] if value < 0 else [value % 2 + 1, value * 7] for value in values], np.uint64)
    order: dict[int, int] = {}
    for value in values:
        if value >= 0:
            order.setdefault(value, len(order))
    assert _ids(hashes).tolist() == [order.get(value, -1) for value in values]


@settings(deadline=None, max_examples=15)
@given(st.integers(30, 90), st.integers(2, 4), st.integers(0, 3))
def test_cells_hold_every_row_and_no_more_than_their_room(rows: int, count: int, spare: int) -> None:
    vectors = np.random.default_rng(rows).normal(size=(100, 3)).astype(np.float32)
    chosen = np.sort(np.random.default_rng(1).permutation(100)[:rows])
    room = -(-rows // count) + spare
    cells = k_means_cells(vectors, chosen, count, room, seed=4)
    assert cells.min() >= 0
    assert np.bincount(cells, minlength=count).max() <= room
    np.testing.assert_array_equal(cells, k_means_cells(vectors, chosen, count, room, seed=4))


def test_cells_keep_near_rows_together() -> None:
    centres = np.array([[0, 0], [9, 9], [-9, 9]], np.float32)
    vectors = np.repeat(centres, 20, axis=0) + np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    cells = k_means_cells(vectors, np.arange(60), 3, 25, seed=0)
    assert [len(set(cells[start : start + 20].tolist())) for start in (0, 20, 40)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "rows", "expected"),
    [([4, 4, 4, 2], 8, [8, 6]), ([4, 4, 4], 6, [4, 4, 4]), ([9, 1], 3, [9, 1]), ([2, 2], 100, [4])],
)
def test_shards_hold_whole_batches(sizes: list[int], rows: int, expected: list[int], tmp_path: Path) -> None:
    plan = BatchPlan(indices=np.arange(sum(sizes)), offsets=np.cumsum([0, *sizes]))
    plan.save(tmp_path / "plan.arrow")
    shards = cut_by_batches(tmp_path / "plan.arrow", rows)
    assert [shard.rows for shard in shards] == expected
    assert [shard.start for shard in shards] == np.cumsum([0, *expected])[:-1].tolist()


def test_shuffle_puts_every_row_in_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    texts = [None if number % 9 == 0 else f"row {number}" for number in range(100)]
    lists = [[float(number)] * (number % 3) for number in range(100)]
    pq.write_table(pa.table({"text": texts, "list": lists, "n": np.arange(100)}), tmp_path / "rows.parquet")
    source = open_source(FileSource(format="parquet", path=str(tmp_path / "rows.parquet")))
    kept = rng.permutation(100)[:61]
    np.save(tmp_path / "kept.npy", kept)
    score, scattered, stage = (Stage(tmp_path / name) for name in ("score", "scatter", "write"))
    # Blocks of 3: one of them goes to no shard.
    kept = kept[kept // 3 != 5]
    np.save(tmp_path / "kept.npy", kept)
    blocks = source.blocks(3)
    for block in blocks:
        np.save(score.piece(block.number), np.arange(block.start, block.start + block.rows) / 2)
    BatchPlan.of_size(np.arange(len(kept)), 10).save(tmp_path / "plan.arrow")
    shards = cut_by_batches(tmp_path / "plan.arrow", 25)
    Places(tmp_path / "kept.npy", scattered)()
    for block in blocks:
        Scatter(source, {"half": score}, scattered, shards)(block)
    found = []
    for shard in reversed(shards):
        JoinShard(source, blocks, {"half": score}, scattered, stage, tmp_path, len(shards))(shard)
        with pa.memory_map(str(tmp_path / f"data-{shard.number:05d}-of-{len(shards):05d}.arrow")) as file:
            found.insert(0, pa.ipc.open_stream(file).read_all())
    assert [len(table) for table in found] == [shard.rows for shard in shards]
    rows = pa.concat_tables(found)
    assert rows["_index"].to_pylist() == kept.tolist()
    assert rows["text"].to_pylist() == [texts[index] for index in kept]
    assert rows["list"].to_pylist() == [lists[index] for index in kept]
    assert rows["half"].to_pylist() == [index / 2 for index in kept]
    assert rows.schema.field("text").type == pa.string()
