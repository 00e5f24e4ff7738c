"""Blocks: cut by rows and by bytes, alike whoever cuts them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.recipe import FileSource
from curation.sources import open_source
from curation.sources.base import Block, Part
from curation.sources.blocks import Cutter, block_at


def cut(counts: list[int], rows: int) -> list[Block]:
    cutter = Cutter(rows, 1)
    for file, count in enumerate(counts):
        cutter.add(file, count)
    return cutter.blocks()


def test_blocks_span_small_files() -> None:
    assert cut([2, 0, 3, 4], 4) == [
        Block(0, 0, 4, (Part(0, 0, 2), Part(2, 0, 2))),
        Block(1, 4, 4, (Part(2, 2, 1), Part(3, 0, 3))),
        Block(2, 8, 1, (Part(3, 3, 1),)),
    ]
    assert cut([], 4) == cut([0, 0], 4) == []


@pytest.mark.parametrize(("rows", "size"), [(0, 1), (1, 0)])
def test_a_block_of_nothing(rows: int, size: int) -> None:
    with pytest.raises(ValueError, match="a block has at least 1"):
        Cutter(rows, size)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    files=st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5000)), max_size=5), max_size=5),
    rows=st.integers(1, 30),
    size=st.integers(1, 3000),
)
def test_blocks_hold_all_rows_in_order_within_both_limits(
    files: list[list[tuple[int, int]]], rows: int, size: int
) -> None:
    cutter = Cutter(rows, size)
    weights: list[float] = []
    where: list[tuple[int, int]] = []
    for number, runs in enumerate(files):
        first = 0
        for count, weight in runs:
            cutter.add(number, count, weight, 10 * np.arange(first, first + count))
            weights += [weight / count] * count
            where += [(number, row) for row in range(first, first + count)]
            first += count
    blocks = cutter.blocks()
    parts = [part for block in blocks for part in block.parts]
    assert [(part.file, part.row + row) for part in parts for row in range(part.rows)] == where
    assert [block.start for block in blocks] == np.cumsum([0, *(block.rows for block in blocks)])[:-1].tolist()
    for number, block in enumerate(blocks):
        assert block.number == number
        assert sum(part.rows for part in block.parts) == block.rows <= rows
        assert all(part.offset == 10 * part.row for part in block.parts)
        inside = weights[block.start : block.start + block.rows]
        # What is left of a byte in each run is not counted.
        assert block.rows == 1 or sum(inside) <= size + 2 * len(inside)
        assert block_at(blocks, block.start) == block_at(blocks, block.start + block.rows - 1) == block


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream", "jsonl"])
def test_wide_rows_make_short_blocks(form: str, tmp_path: Path) -> None:
    table = pa.table({"text": [f"{row:04d}" * 250 for row in range(400)], "row": range(400)})
    path = tmp_path / "rows"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=30)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        new = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=50)
    spec = FileSource(format="arrow" if form == "stream" else form, path=str(path))
    source = open_source(spec)
    blocks = source.blocks(100, 20_000)
    assert max(block.rows for block in blocks) <= 21
    assert len(blocks) <= 30
    assert blocks == open_source(spec).blocks(100, 20_000)
    read = pa.concat_tables([source.read(block)[0] for block in blocks])
    assert read["row"].to_pylist() == list(range(400))
    assert [block.rows for block in source.blocks(100)] == [100] * 4
