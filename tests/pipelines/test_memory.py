"""Python without YAML: steps as objects, and rows that a program hands over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import Dataset
from curation.dataset.manifest import Manifest
from curation.errors import OutputError, SourceError
from curation.pipelines import Acquire, Align, Dedup, FileSource, Recipe, Score, run
from curation.pipelines.memory import ROWS as ROWS_AT_A_TIME
from curation.pipelines.memory import files_behind

from .functions import NAME as FUNCTIONS

ROWS = 300


@pytest.fixture(autouse=True)
def _ray(ray_session: None) -> None:
    """One Ray runtime for all."""


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(3)
    words = rng.choice(["merge", "sort", "list", "parse"], (ROWS, 9))
    texts = [" ".join(line) + f" {number - number % 10 // 9}" for number, line in enumerate(words)]
    return pa.table({"text": texts, "quality": rng.random(ROWS)})


STEPS = [
    Dedup(),
    Align(targets=["merge sort list"]),
    Score(name="value", column="quality"),
    Acquire(score="alignment", fraction=0.2),
]


def shards(out: Path) -> dict[str, str]:
    files = Manifest.load(out).files
    return {name: record.sha256 for name, record in files.items() if name.startswith("data-")}


def test_every_kind_of_rows_gives_the_shards_that_a_file_gives(table: pa.Table, tmp_path: Path) -> None:
    import ray.data

    pq.write_table(table, tmp_path / "rows.parquet")
    options: dict[str, Any] = {"seed": 5, "block_rows": 64, "rows_per_shard": 25}
    expected = run(STEPS, source=tmp_path / "rows.parquet", out=tmp_path / "file", **options)
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    shuffled = saved.select(np.argsort(np.random.default_rng(0).permutation(ROWS)))
    back = shuffled.select(np.random.default_rng(0).permutation(ROWS))
    given = {
        "table": table,
        "chunks": pa.concat_tables([table.slice(0, 7), table.slice(7)]),
        "dataset in memory": datasets.Dataset(table),
        "dataset on disk": saved,
        "dataset with indices": back,
        "ray": ray.data.from_arrow([table.slice(0, 100), table.slice(100)]),
    }
    for name, rows in given.items():
        out = tmp_path / name
        manifest = run(STEPS, source=rows, out=out, **options)
        assert shards(out) == shards(tmp_path / "file"), name
        assert (manifest.rows_in, manifest.rows_out) == (ROWS, expected.rows_out)
        assert not out.with_name(f"{name}.partial").exists()
        Dataset(out).verify()
    assert Manifest.load(tmp_path / "table").inputs[0].path == "pyarrow.Table"
    assert Manifest.load(tmp_path / "table").inputs == Manifest.load(tmp_path / "chunks").inputs
    assert Manifest.load(tmp_path / "dataset on disk").recipe["source"]["format"] == "arrow"


def test_a_recipe_as_an_object_is_the_recipe_of_a_file(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "rows.parquet")
    source = FileSource(format="parquet", path=str(tmp_path / "rows.parquet"))
    recipe = Recipe(source=source, steps=STEPS, block_rows=64)
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe
    assert again.sha256() == recipe.sha256()
    assert run(recipe, tmp_path / "one").recipe_sha256 == recipe.sha256()
    assert run(STEPS, tmp_path / "two", source=source, block_rows=64).recipe_sha256 == recipe.sha256()


def test_the_same_rows_again_find_the_result_and_other_rows_do_not(table: pa.Table, tmp_path: Path) -> None:
    first = run([Dedup()], source=table, out=tmp_path / "out")
    assert run([Dedup()], source=table, out=tmp_path / "out") == first
    with pytest.raises(OutputError, match="result of other inputs"):
        run([Dedup()], source=table.slice(1), out=tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_an_interrupted_run_goes_on_with_the_same_rows_alone(table: pa.Table, tmp_path: Path) -> None:
    def fails(rows: pa.Table) -> list[float]:
        raise KeyError("boo")

    broken = [Dedup(), Score(function=f"{FUNCTIONS}:gone")]
    (tmp_path / "flag").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(Exception, match="gone"):
            run(broken, source=table, out=tmp_path / "out", block_rows=64)
    kept = sorted((tmp_path / "out.partial").glob("01-dedup-*/[0-9]*.npy"))
    before = [path.stat().st_mtime_ns for path in kept]
    assert before
    with pytest.raises(OutputError, match="interrupted run with another"):
        run(broken, source=table.slice(1), out=tmp_path / "out", block_rows=64)
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_the_report_shows_dropped_rows_too_and_explain_says_that_they_are_gone(tmp_path: Path) -> None:
    rows = pa.table({"text": ["kept text one", "dropped text two"], "quality": [1.0, 0.0]})
    run([Score(column="quality"), Acquire(count=1)], source=rows, out=tmp_path / "out")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "kept text one" in report
    assert "dropped text two" in report
    dataset = Dataset(tmp_path / "out")
    assert dataset.explain(0).row is not None
    dropped = dataset.explain(1)
    assert dropped.row is None
    assert dropped.note == (
        "the source cannot be read any more: it was a pyarrow.Table in memory, which is gone with the program that "
        "handed it over"
    )


def test_what_is_no_source(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="source is a builtins.dict: give a FileSource"):
        run([Dedup()], source={"text": ["a"]}, out=tmp_path / "out")
    with pytest.raises(SourceError, match=r"source is a datasets.\w+: give a FileSource"):
        run([Dedup()], source=datasets.DatasetDict({"train": datasets.Dataset(table)}), out=tmp_path / "out")
    drifting = datasets.IterableDataset.from_generator(_null_for_long)
    with pytest.raises(SourceError, match=r"cannot be written as Arrow: "):
        run([Dedup()], source=drifting, out=tmp_path / "out")
    with pytest.raises(SourceError, match="say nothing of the rows"):
        run([Dedup()], out=tmp_path / "out")
    with pytest.raises(SourceError, match=r"a pyarrow.Table, has no rows"):
        run([Dedup()], source=table.slice(0, 0), out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"step 1 \(acquire\) has no score"):
        run([Acquire(count=1)], source=table, out=tmp_path / "out")
    with pytest.raises(SourceError, match="'body'"):
        run([Dedup(column="body")], source=table, out=tmp_path / "out")
    manifest = run([Dedup()], source=table, out=tmp_path / "out")
    with pytest.raises(SourceError, match="in memory, which is gone"):
        run(Recipe.model_validate(manifest.recipe), tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_files_are_taken_as_they_are_only_where_they_are_the_dataset(table: pa.Table, tmp_path: Path) -> None:
    datasets.Dataset(table).save_to_disk(tmp_path / "saved", num_shards=3)
    saved = datasets.load_from_disk(tmp_path / "saved")
    behind = files_behind(saved)
    assert behind is not None
    assert len(behind.path) == 3
    for other in (
        saved.select(range(100)),
        saved.shuffle(seed=0),
        saved.remove_columns("quality"),
        saved.rename_column("quality", "value"),
        datasets.concatenate_datasets([saved, saved]),
        datasets.Dataset(table),
        table,
    ):
        assert files_behind(other) is None


def _null_for_long() -> Iterator[dict[str, Any]]:
    yield from ({"text": str(row), "late": None if row < ROWS_AT_A_TIME else row} for row in range(ROWS_AT_A_TIME + 1))


def test_chunks_may_have_a_dictionary_each(tmp_path: Path) -> None:
    parts = [pa.array(["b", "a"] * ROWS_AT_A_TIME), pa.array(["c", "a"] * ROWS_AT_A_TIME)]
    column = pa.chunked_array([part.dictionary_encode() for part in parts])
    table = pa.table({"text": pa.array(range(len(column))).cast(pa.string()), "kind": column})
    run([Dedup()], source=table, out=tmp_path / "out")
    expected = [value for part in parts for value in part.to_pylist()]
    assert Dataset(tmp_path / "out").to_datasets()["kind"][:] == expected


def test_relative_paths_are_those_of_the_working_folder(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table, tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    file = FileSource(format="parquet", path="rows.parquet")
    steps = [Align(targets=file), Acquire(fraction=0.5)]
    for name, manifest in {
        "steps": run(steps, source=file, out="steps"),
        "recipe": run(Recipe(source=file, steps=steps, seed=1), "recipe"),
    }.items():
        assert manifest.recipe["source"]["path"] == [str(tmp_path / "rows.parquet")], name
        assert manifest.recipe["steps"][0]["targets"]["path"] == [str(tmp_path / "rows.parquet")], name
