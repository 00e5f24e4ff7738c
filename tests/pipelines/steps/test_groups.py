"""Groups of all blocks, beside those of a list."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import SourceError
from curation.pipelines import Acquire
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.groups import GroupBlock, groups_of
from curation.recipe import FileSource
from curation.recipe.model import Made
from curation.sources import open_source

KINDS: dict[pa.DataType, list[Any]] = {
    pa.string(): ["", "a", "b" * 40, None],
    pa.binary(): [b"", b"\xff", None],
    pa.int64(): [0, -1, None],
    pa.bool_(): [True, False, None],
    pa.float64(): [0.5, -0.5, None],
    pa.timestamp("us"): [0, 1, None],
    pa.decimal128(5, 2): [None],
    pa.dictionary(pa.int8(), pa.string()): ["x", "y", None],
}


def groups(folder: Path, table: pa.Table, inside: np.ndarray[Any, Any], block_rows: int) -> np.ndarray[Any, Any]:
    pq.write_table(table, folder / "rows.parquet", row_group_size=max(7, len(table) // 30))
    source, stage = open_source(FileSource(format="parquet", path=str(folder / "rows.parquet"))), Stage(folder / "s")
    blocks = source.blocks(block_rows)
    for block in blocks:
        GroupBlock(source, stage, "group")(block)
    return groups_of(stage, blocks, inside)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)), block_rows=st.integers(1, 20))
def test_groups_are_those_of_equal_values(data: st.DataObject, kind: pa.DataType, block_rows: int) -> None:
    values = data.draw(st.lists(st.sampled_from(KINDS[kind]), min_size=1, max_size=60))
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    with tempfile.TemporaryDirectory() as folder:
        table = pa.table({"group": pa.array(values, kind)})
        found = groups(Path(folder), table, inside, block_rows)
    left = [value for value, keep in zip(values, inside, strict=True) if keep]
    same = np.array([[one == other for other in left] for one in left], bool).reshape(len(left), len(left))
    np.testing.assert_array_equal(found[:, None] == found[None, :], same)


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8())])
def test_groups_by_what_cannot_be_compared_are_refused_first(kind: pa.DataType) -> None:
    with pytest.raises(SourceError, match="reads column 'group' as values that can be compared"):
        Acquire(count=1, per="group").check("step 2 (acquire)", pa.schema([("group", kind)]), Made({"score": 1}))


@pytest.mark.slow
def test_groups_of_more_than_two_gibibytes_of_text(tmp_path: Path) -> None:
    rows = 2_800_000
    codes = np.arange(rows) % 5
    text = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array([f"{code}" * 800 for code in range(5)]))
    (tmp_path / "s").mkdir()
    found = groups(tmp_path, pa.table({"group": text}), np.ones(rows, bool), 1_000_000)
    np.testing.assert_array_equal(found, codes)
