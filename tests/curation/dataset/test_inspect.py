"""``inspect`` looks into finished datasets and into sources."""

import json
from pathlib import Path

import pytest

from curation.dataset.inspect import inspect_source, source_of
from curation.errors import SourceError
from curation.recipe import FileSource, StdlibSource
from curation.sources import EXTENSIONS

from ..conftest import Finished


def test_a_finished_dataset(finished: Finished) -> None:
    dataset = finished()
    inspection = dataset.inspect(samples=4)
    assert inspection.rows == dataset.manifest.rows_out
    assert list(inspection.schema) == ["text", "source", "value", "_index", "_weight", "quality"]
    assert sum(inspection.counts.values()) == dataset.manifest.rows_in
    assert [histogram.name for histogram in inspection.histograms] == ["quality"]
    assert [cut.number for cut in inspection.cuts] == [3]
    indices = [sample["_index"] for sample in inspection.samples]
    assert len(indices) == 4
    assert indices == sorted(indices)


def test_samples_run_from_the_first_row_to_the_last(finished: Finished) -> None:
    dataset = finished(keep=5, shards=2)
    assert len(dataset.inspect(samples=100).samples) == 5
    assert dataset.inspect(samples=0).samples == []


def test_a_source(finished: Finished) -> None:
    out = finished().folder
    source = out.parent / "source.parquet"
    inspection = inspect_source(source_of(str(source)), str(source), samples=2)
    assert inspection.rows == 400
    assert inspection.files == {str(source): 400}
    assert [sample["text"] for sample in inspection.samples] == [
        "def function_-1(): return -1",
        "def function_399(): return 399",
    ]
    assert inspection.counts == {}
    assert inspection.histograms == []


def test_jsonl_in_a_folder(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number}"}) for number in range(5)]
    (tmp_path / "part.jsonl").write_text("\n".join(lines) + "\n")
    inspection = inspect_source(source_of(str(tmp_path)), str(tmp_path), samples=1)
    assert inspection.rows == 5
    assert inspection.samples == [{"text": "text 0"}]


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.parquet", "parquet"), ("a.arrow", "arrow"), ("a.jsonl.gz", "jsonl"), ("s3://bucket/*.jsonl", "jsonl")],
)
def test_formats_are_told_by_name(name: str, form: str) -> None:
    assert source_of(name) == FileSource.model_validate({"format": form, "path": name})


@pytest.mark.parametrize(("form", "ending"), [(form, ending) for form in EXTENSIONS for ending in EXTENSIONS[form]])
def test_every_name_that_a_source_reads_is_known(tmp_path: Path, form: str, ending: str) -> None:
    assert source_of(f"a{ending}") == FileSource.model_validate({"format": form, "path": f"a{ending}"})
    (tmp_path / "_notes").mkdir()
    for other in ("_notes/a.jsonl", ".a.parquet", f"b{ending}"):
        (tmp_path / other).touch()
    assert source_of(str(tmp_path)) == FileSource.model_validate({"format": form, "path": str(tmp_path)})


def test_words_folders_and_recipes(finished: Finished, tmp_path: Path) -> None:
    out = finished().folder
    assert source_of("stdlib") == StdlibSource(format="stdlib")
    assert source_of(str(out)) == FileSource(format="dataset", path=str(out))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: {format: jsonl, path: rows.jsonl}\nsteps: [{step: dedup}]\n")
    assert source_of(str(recipe)) == FileSource(format="jsonl", path=[str(tmp_path / "rows.jsonl")])


def test_what_cannot_be_told_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not a curated dataset .* nor a source .* \.parquet"):
        source_of(str(tmp_path / "strange.xyz"))
    with pytest.raises(SourceError, match="nor a source"):
        source_of(str(tmp_path))
