"""``Dataset`` reads what was written: rows by position equal a plain loop, whatever the sizes of shards and batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curation
from curation.dataset import Dataset
from curation.dataset.manifest import BATCHES, DECISIONS, MANIFEST
from curation.dataset.writer import shard_name, shard_names
from curation.errors import SourceError, VerificationError
from curation.plan import BatchPlan

from ..conftest import Finished, write_finished


def plain_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """All rows, by a loop that knows nothing of positions."""
    rows = []
    for path in sorted(dataset.folder.glob("data-*.arrow")):
        with pa.memory_map(str(path)) as source:
            rows += pa.ipc.open_stream(source).read_all().to_pylist()
    return rows


def test_it_says_what_it_is(finished: Finished) -> None:
    dataset = curation.Dataset(str(finished().folder))
    assert isinstance(dataset, Dataset)
    assert len(dataset) == dataset.manifest.rows_out == 60
    assert repr(dataset) == f"Dataset({str(dataset.folder)!r}): 60 of 400 rows kept"
    assert dataset.schema.names == ["text", "source", "value", "_index", "_weight", "quality"]
    assert dataset.score_names == ["quality"]
    assert dataset.text_column == "text"
    assert dataset.decisions.counts()["kept"] == 60
    dataset.verify()
    assert not dataset.explain(7).kept
    assert dataset.inspect().rows == 60


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Dataset, list[dict[str, Any]]]]:
    """Datasets cut into shards and record batches of many sizes, each with its rows; some shards are empty."""
    home = tmp_path_factory.mktemp("sizes")
    cuts = [(60, 1, 60), (60, 3, 16), (60, 7, 1), (5, 8, 2), (61, 4, 5), (1, 1, 1)]
    datasets = [
        write_finished(home / f"{keep}-{shards}-{batch}", keep=keep, shards=shards, batch_rows=batch)
        for keep, shards, batch in cuts
    ]
    return [(dataset, plain_rows(dataset)) for dataset in datasets]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rows_are_those_of_a_plain_loop(sizes: list[tuple[Dataset, list[dict[str, Any]]]], data: st.DataObject) -> None:
    dataset, rows = data.draw(st.sampled_from(sizes))
    positions = data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=80))
    columns = data.draw(st.none() | st.lists(st.sampled_from(dataset.schema.names), min_size=1, unique=True))
    table = dataset.rows(positions, columns)
    assert table.schema.names == (dataset.schema.names if columns is None else columns)
    assert table.to_pylist() == [{name: rows[position][name] for name in table.schema.names} for position in positions]


def test_many_rows_in_any_order(finished: Finished) -> None:
    dataset = finished(rows=6000, keep=5000, shards=2, batch_rows=700)
    order = np.random.default_rng(0).integers(0, 5000, 7000)
    index = np.array([row["_index"] for row in plain_rows(dataset)])
    table = dataset.rows(order)
    assert table.schema == dataset.schema
    np.testing.assert_array_equal(table["_index"].to_numpy(), index[order])


def test_only_shards_that_hold_a_row_are_read(finished: Finished) -> None:
    dataset = finished(shards=3)
    rows = plain_rows(dataset)
    (dataset.folder / shard_name(1, 3)).unlink()
    assert dataset.rows([59, 0]).to_pylist() == [rows[59], rows[0]]
    assert dataset.rows([]).num_rows == 0
    with pytest.raises(SourceError, match=r"data-00001-of-00003\.arrow: cannot be read"):
        dataset.rows([0, 20])


@pytest.mark.parametrize("position", [-1, 60])
def test_positions_out_of_range(finished: Finished, position: int) -> None:
    dataset = finished()
    with pytest.raises(IndexError, match=rf"position {position} is out of range: .*out has 60 rows, from 0 on"):
        dataset.rows([0, position])
    with pytest.raises(IndexError, match=rf"position {position} is out of range"):
        dataset.locate(position)


def test_what_is_no_position_or_column(finished: Finished) -> None:
    dataset = finished()
    with pytest.raises(TypeError, match="positions must be integers"):
        dataset.rows([0.5])
    with pytest.raises(ValueError, match="one-dimensional"):
        dataset.rows([[0]])
    with pytest.raises(ValueError, match="at least one column"):
        dataset.rows([0], [])
    for read in (lambda: dataset.rows([0], ["body"]), lambda: next(dataset.batches(["body"]))):
        with pytest.raises(ValueError, match=r"no column 'body'; it has text, source, value, _index"):
            read()


def test_shards_that_hold_fewer_rows_than_the_manifest_says(finished: Finished) -> None:
    dataset = finished()
    shard = dataset.folder / shard_name(1, 3)
    with pa.memory_map(str(shard)) as source:
        table = pa.ipc.open_stream(source).read_all().slice(1)
    shard.unlink()
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SourceError, match="fewer rows than the manifest says: 1 of 2 rows are missing"):
        dataset.rows([0, 39])
    with pytest.raises(VerificationError):
        dataset.verify()


def test_batches_are_all_rows_in_order(finished: Finished) -> None:
    dataset = finished(batch_rows=7)
    assert [row for batch in dataset.batches() for row in batch.to_pylist()] == plain_rows(dataset)
    values = [batch.schema.names for batch in dataset.batches(["quality", "text"])]
    assert values == [["quality", "text"]] * 9
    assert sum(batch.num_rows for batch in dataset.batches(shards=dataset.shards[1:])) == 40


def test_candidates_stand_at_positions(finished: Finished) -> None:
    dataset = finished()
    rows = plain_rows(dataset)
    wanted = np.random.default_rng(1).integers(0, 400, 300)
    index = [row["_index"] for row in rows]
    expected = [index.index(candidate) if candidate in index else -1 for candidate in wanted.tolist()]
    np.testing.assert_array_equal(dataset.positions(wanted), expected)
    assert dataset.positions([]).tolist() == []
    assert dataset.locate(0) == (shard_name(0, 3), 0)
    assert dataset.locate(41) == (shard_name(2, 3), 1)


def test_plan(finished: Finished) -> None:
    assert finished("without").plan is None
    dataset = finished("with", plan=True)
    assert dataset.plan is not None
    assert len(dataset.plan) == 4
    (dataset.folder / BATCHES).write_bytes(b"no")
    with pytest.raises(SourceError, match="not a batch plan"):
        Dataset(dataset.folder).plan  # noqa: B018


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no manifest\.json"):
        Dataset(tmp_path)


def test_files_that_lead_out_are_not_read(finished: Finished, tmp_path: Path) -> None:
    dataset = finished(plan=True)
    for name in (DECISIONS, BATCHES, dataset.shards[2]):
        (dataset.folder / name).rename(tmp_path / name)
        (dataset.folder / name).symlink_to(tmp_path / name)
    assert Dataset(dataset.folder, within=tmp_path).rows([59]) == dataset.rows([59])
    guarded = Dataset(dataset.folder, within=dataset.folder.parent)
    assert guarded.rows([0]).num_rows == 1
    for read in (lambda: guarded.rows([59]), lambda: guarded.plan, lambda: guarded.decisions):
        with pytest.raises(SourceError, match="leads out of"):
            read()
    with pytest.raises(SourceError, match="leads out of"):
        Dataset(dataset.folder, within=dataset.folder / "below")


def test_candidates_are_those_of_the_source(finished: Finished) -> None:
    dataset = finished()
    source, blocks = dataset.candidates()
    assert [block.rows for block in blocks] == [64] * 6 + [16]
    assert Dataset(dataset.folder, source=source).candidates()[0] is source
    (dataset.folder.parent / "source.parquet").unlink()
    with pytest.raises(SourceError):
        dataset.candidates()


def test_shards_come_by_number(finished: Finished) -> None:
    manifest = finished().manifest
    names = [shard_name(number, 200_001) for number in (9_999, 10_000, 100_000, 100_001)]
    files = dict.fromkeys(
        [*reversed(names), MANIFEST, "data-1.arrow", "data-../x-of-1.arrow"], manifest.files[DECISIONS]
    )
    assert shard_names(manifest.model_copy(update={"files": files})) == names


def test_the_column_that_says_most(finished: Finished) -> None:
    dataset = finished()
    recipe = {**dataset.manifest.recipe, "steps": [{"step": "dedup", "column": "source"}, {"step": "acquire"}]}
    other = Dataset(dataset.folder, manifest=dataset.manifest.model_copy(update={"recipe": recipe}))
    assert other.text_column == "source"


def test_to_datasets(finished: Finished) -> None:
    dataset = finished()
    assert dataset.to_datasets().to_list() == plain_rows(dataset)


@pytest.mark.usefixtures("ray_session")
def test_to_ray(finished: Finished) -> None:
    dataset = finished(batch_rows=7)
    rows = sorted(dataset.to_ray().take_all(), key=lambda row: row["_index"])
    assert rows == plain_rows(dataset)


def test_a_plan_may_come_with_the_manifest(finished: Finished) -> None:
    dataset = finished()
    (dataset.folder / MANIFEST).unlink()
    BatchPlan.of_size(np.arange(60), 20).save(dataset.folder / BATCHES)
    unfinished = Dataset(dataset.folder, manifest=dataset.manifest)
    assert unfinished.plan is not None
    assert unfinished.rows([3]).num_rows == 1
