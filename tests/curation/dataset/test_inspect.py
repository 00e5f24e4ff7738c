"""``inspect`` looks into finished datasets and into sources."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from curation.dataset.inspect import inspect, source_of
from curation.dataset.manifest import Manifest
from curation.errors import SourceError
from curation.recipe import FileSource, StdlibSource

Finished = Callable[..., tuple[Path, Manifest]]


def test_a_finished_dataset(finished: Finished) -> None:
    out, manifest = finished()
    found = inspect(str(out), samples=4)
    assert found.rows == manifest.rows_out
    assert list(found.schema) == ["text", "source", "value", "_index", "_weight", "quality"]
    assert sum(found.counts.values()) == manifest.rows_in
    assert [histogram.name for histogram in found.histograms] == ["quality"]
    assert [cut.number for cut in found.cuts] == [3]
    indices = [sample["_index"] for sample in found.samples]
    assert len(indices) == 4
    assert indices == sorted(indices)


def test_samples_run_from_the_first_row_to_the_last(finished: Finished) -> None:
    out, _ = finished(keep=5, shards=2)
    assert len(inspect(str(out), samples=100).samples) == 5
    assert inspect(str(out), samples=0).samples == []


def test_a_source(finished: Finished) -> None:
    out, _ = finished()
    source = out.parent / "source.parquet"
    found = inspect(str(source), samples=2)
    assert found.rows == 400
    assert found.files == {str(source): 400}
    assert [sample["text"] for sample in found.samples] == [
        "def function_-1(): return -1",
        "def function_399(): return 399",
    ]
    assert found.counts == {}
    assert found.histograms == []


def test_jsonl_in_a_folder(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number}"}) for number in range(5)]
    (tmp_path / "part.jsonl").write_text("\n".join(lines) + "\n")
    found = inspect(str(tmp_path), samples=1)
    assert found.rows == 5
    assert found.samples == [{"text": "text 0"}]


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.parquet", "parquet"), ("a.arrow", "arrow"), ("a.jsonl.gz", "jsonl"), ("s3://bucket/*.jsonl", "jsonl")],
)
def test_formats_are_told_by_name(name: str, form: str) -> None:
    assert source_of(name) == FileSource.model_validate({"format": form, "path": name})


def test_words_folders_and_recipes(finished: Finished, tmp_path: Path) -> None:
    out, _ = finished()
    assert source_of("stdlib") == StdlibSource(format="stdlib")
    assert source_of(str(out)) == FileSource(format="dataset", path=str(out))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: {format: jsonl, path: rows.jsonl}\nsteps: [{step: dedup}]\n")
    assert source_of(str(recipe)) == FileSource(format="jsonl", path=[str(tmp_path / "rows.jsonl")])


def test_what_cannot_be_told_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not a curated dataset .* nor a source .* \.parquet"):
        inspect(str(tmp_path / "strange.xyz"))
    with pytest.raises(SourceError, match="nor a source"):
        inspect(str(tmp_path))
