"""Inputs of runs: they change meanwhile, hold more than the eye sees, or what a dataset cannot."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation import Dataset
from curation.errors import OutputError, SourceError
from curation.pipelines import Acquire, Align, BlockStep, Dedup, FileSource, Recipe, Score, Verdict, run
from curation.progress import Silent

from .functions import NAME as FUNCTIONS

pytestmark = pytest.mark.usefixtures("ray_session")


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Overwrites(BlockStep):
    """A slow score: while it works on row 100, another program overwrites a file in place."""

    path: str
    old: str
    new: str

    @property
    def scores(self) -> tuple[str, ...]:
        return ("letter",)

    def judge(self, rows: pa.Table) -> Verdict:
        first = rows["text"].to_pylist()
        if any(text.endswith(" 100") for text in first):
            path = Path(self.path)
            data = path.read_bytes()
            with path.open("r+b") as file:
                file.write(data.replace(self.old.encode() * 4, self.new.encode() * 4))
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
        return Verdict({"letter": [ord(text[0]) for text in first]})


@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow"])
def test_a_file_overwritten_in_place_in_the_middle_of_a_run(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"rows.{form}"
    rows = [{"text": f"{'a' * 40} {number:4}"} for number in range(200)]
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False, compression="none")
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"text": pa.string()})) as writer:
            writer.write_table(pa.Table.from_pylist(rows), max_chunksize=50)
    source = FileSource(format=form, path=str(path))  # type: ignore[arg-type]
    steps = [Overwrites(path=str(path), old="a", new="b"), Acquire(score="letter", fraction=0.5)]
    options: dict[str, Any] = {"source": source, "block_rows": 50, "workers": 1}
    with pytest.raises(SourceError, match=rf"rows.{form}: has changed since the run began: it was written to"):
        run(steps, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    again = Overwrites(path=str(path), old="b", new="b")
    run([again, steps[1]], tmp_path / "out", restart=True, **(options | {"block_rows": 200}))
    result = Dataset(tmp_path / "out")
    result.verify()
    table = pa.Table.from_batches(list(result.batches()))
    assert {text[0] for text in table["text"].to_pylist()} == {"b"}
    assert set(table["letter"].to_pylist()) == {float(ord("b"))}


@pytest.mark.parametrize("mark", ["ETag", ""])
def test_a_file_on_a_web_server_that_changed_is_another_input(tmp_path: Path, web_server: Any, mark: str) -> None:
    def lines(letter: str) -> bytes:
        return "".join(json.dumps({"text": f"{letter} {row}"}) + "\n" for row in range(9)).encode()

    server = web_server(mark)
    rows, targets = server.put("rows.jsonl", lines("a")), server.put("targets.jsonl", lines("a"))
    recipe = Recipe(
        source=FileSource(format="jsonl", path=rows),
        steps=[Align(targets=FileSource(format="jsonl", path=targets)), Acquire(count=2)],
    )
    manifest = run(recipe, tmp_path / "out")
    assert run(recipe, tmp_path / "out") == manifest
    for name, said in (("targets.jsonl", "targets.jsonl"), ("rows.jsonl", "other inputs")):
        server.put(name, lines("b"))
        with pytest.raises(OutputError, match=said):
            run(recipe, tmp_path / "out")
        run(recipe, tmp_path / name)


def test_what_is_left_out_or_filled_in_is_told(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "source=web").mkdir(parents=True)
    (corpus / "source=books").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "url": ["u", "v"]}), corpus / "source=web" / "part-0.parquet")
    pq.write_table(pa.table({"text": ["c", "d"]}), corpus / "source=books" / "part-0.parquet")
    (corpus / "rows.jsonl.zst").touch()
    progress = Notes()
    manifest = run([Dedup()], tmp_path / "out", source=corpus, progress=progress)
    assert manifest.notes == [
        f"{corpus}: 1 file does not end in .parquet, .pq and is not read: {corpus}/rows.jsonl.zst",
        f"column 'url' is null in 1 of 2 files, which lack it: {corpus}/source=books/part-0.parquet",
    ]
    assert progress.notes[:2] == manifest.notes
    report = (tmp_path / "out" / "report.html").read_text()
    assert "rows.jsonl.zst" in report
    assert Dataset(tmp_path / "out").to_datasets().to_list() == [
        {"text": text, "url": url, "source": source, "_index": index, "_weight": 1.0}
        for index, (text, url, source) in enumerate(
            [("c", None, "books"), ("d", None, "books"), ("a", "u", "web"), ("b", "v", "web")]
        )
    ]
    aligned = Notes()
    run(
        [Align(targets=FileSource(format="parquet", path=str(corpus)))], tmp_path / "b", source=corpus, progress=aligned
    )
    assert [note for note in aligned.notes if "rows.jsonl.zst" in note] == 2 * manifest.notes[:1]
    per = run([Score(function=f"{FUNCTIONS}:zero"), Acquire(count=1, per="source")], tmp_path / "per", source=corpus)
    assert per.rows_out == 2


def test_types_that_datasets_lacks_are_converted_or_refused_before_the_first_task(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b"]),
            "tags": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "id": pa.array([bytes(16), None], pa.uuid()),
            "views": pa.array([[1], [2, 3]], pa.list_view(pa.int64())),
            "runs": pc.run_end_encode(pa.array(["x", "x"])),
        }
    )
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name, source in (("file", path), ("memory", table)):
        manifest = run([Dedup()], tmp_path / name, source=source)
        rows = datasets.load_from_disk(str(tmp_path / name)).remove_columns(["_index", "_weight"]).to_list()
        assert rows == [
            {"text": "a", "tags": [{"key": "k", "value": 1}], "id": bytes(16), "views": [1], "runs": "x"},
            {"text": "b", "tags": None, "id": None, "views": [2, 3], "runs": "x"},
        ]
        assert "'tags' is map<string, int64> in" in manifest.notes[0]
        assert "'id' is extension<arrow.uuid> in" in manifest.notes[1]
    late = table.append_column("late", pa.array([(1, 2, 3), None], pa.month_day_nano_interval()))
    with pytest.raises(SourceError, match="column 'late' is month_day_nano_interval, a type that `datasets` lacks"):
        run([Dedup()], tmp_path / "late", source=late)
    assert not (tmp_path / "late.partial").exists()


def test_features_of_rows_in_memory_and_on_disk_survive(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"]), "image": datasets.Image()}
    )
    image = pa.array([{"bytes": b"PNG", "path": None}] * 3, features.arrow_schema.field("image").type)
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, 0], "image": image})
    memory = datasets.Dataset(table.replace_schema_metadata(features.arrow_schema.metadata))
    memory.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    renamed = datasets.ClassLabel(names=["nein", "ja"])
    given = {
        "memory": (memory, features),
        "saved": (saved, features),
        "other labels": (saved.cast_column("label", renamed), features | {"label": renamed}),
    }
    for name, (rows, wanted) in given.items():
        run([Dedup()], tmp_path / f"{name} out", source=rows)
        back = datasets.load_from_disk(str(tmp_path / f"{name} out"))
        assert {column: back.features[column] for column in wanted} == dict(wanted), name
        assert back.data.table.select(list(wanted)).equals(table), name
        Dataset(tmp_path / f"{name} out").verify()
    curated = datasets.load_from_disk(str(tmp_path / "other labels out")).remove_columns(["_index", "_weight"])
    run([Dedup()], tmp_path / "again", source=curated)
    assert datasets.load_from_disk(str(tmp_path / "again")).features["label"] == renamed
