"""Whole runs: what comes out, against a few lines of plain Python; and what goes wrong, and how."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import lz4.frame
import numpy as np
import pyarrow as pa
import pytest
import ray

from curation.dataset import Dataset
from curation.dataset.manifest import Manifest
from curation.errors import BadRowError, CurationError, OutputError, RecipeError, SourceError, StepError
from curation.pipelines.engine.ray import check_room, run_pieces
from curation.pipelines.job import reselect, run
from curation.progress import Silent
from curation.recipe import Recipe
from curation.recipe.model import Resources

from .conftest import ROWS, align, recipe, rows_of
from .functions import NAME as FUNCTIONS

pytestmark = pytest.mark.usefixtures("ray_session")


def shards(out: Path) -> dict[str, str]:
    return {name: file.sha256 for name, file in Manifest.load(out).files.items() if name.startswith("data-")}


def decisions(out: Path) -> pa.Table:
    with pa.memory_map(str(out / "decisions.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def alignment(text: str, targets: list[str]) -> float:
    def size(data: str) -> int:
        return len(lz4.frame.compress(data.encode(), compression_level=0))

    def ncd(x: str, t: str) -> float:
        return (size(x + t) - min(size(x), size(t))) / max(size(x), size(t))

    return 1 - sum(ncd(text, target) for target in targets) / len(targets)


def test_dedup_align_top_k(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = ({"step": "dedup"}, align(corpus), {"step": "acquire", "count": 100})
    manifest = run(recipe(corpus, *steps), out)
    rows = rows_of(corpus)
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row["text"], index)
    scores = {i: alignment(text, ["def g(): return merge + sort + list"]) for text, i in first.items()}
    best = sorted(scores, key=lambda i: (-scores[i], i))[:100]

    table = datasets.load_from_disk(str(out))
    assert table["_index"][:] == sorted(best)
    assert table["text"][:] == [rows[i]["text"] for i in sorted(best)]
    np.testing.assert_allclose(table["alignment"][:], [scores[i] for i in sorted(best)], atol=1e-9)

    told = decisions(out).to_pydict()
    assert told["index"] == list(range(ROWS))
    assert [i for i in range(ROWS) if told["kept"][i]] == sorted(best)
    assert [told["pick"][i] for i in best] == list(range(100))
    repeated = [i for i, row in enumerate(rows) if first[row["text"]] != i]
    assert [told["duplicate_of"][i] for i in repeated] == [first[rows[i]["text"]] for i in repeated]
    assert {told["reason"][i] for i in repeated} == {"1. dedup: same text as an earlier row"}
    assert [step.rows_out for step in manifest.steps] == [ROWS - len(repeated), ROWS - len(repeated), 100]
    assert manifest.steps[2].dropped == {"3. acquire: below the cut": ROWS - len(repeated) - 100}
    assert manifest.steps[2].details["lowest_kept"] == pytest.approx(scores[best[-1]])
    Dataset(out).verify()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("kind", ["power", "softmax", "soft-rank"])
def test_stochastic_draws_are_by_seed(corpus: Path, tmp_path: Path, kind: str) -> None:
    def draw(seed: int, name: str) -> list[int]:
        acquire = {"step": "acquire", "kind": kind, "fraction": 0.05}
        run(recipe(corpus, {"step": "score", "column": "quality"}, acquire, seed=seed), tmp_path / name)
        return datasets.load_from_disk(str(tmp_path / name))["_index"][:]

    first = draw(1, "a")
    assert first == draw(1, "b") != draw(2, "c")
    assert len(first) == ROWS // 20


def test_threshold_then_per_group(corpus: Path, tmp_path: Path) -> None:
    steps = (
        {"step": "score", "column": "quality"},
        {"step": "acquire", "kind": "threshold", "threshold": 1.0},
        {"step": "acquire", "count": 3, "per": "group"},
    )
    run(recipe(corpus, *steps), tmp_path / "out")
    rows = rows_of(corpus)
    expected = []
    for group in {row["group"] for row in rows}:
        inside = [i for i, row in enumerate(rows) if row["group"] == group and row["quality"] >= 1.0]
        expected += sorted(inside, key=lambda i: (-rows[i]["quality"], i))[:3]
    assert datasets.load_from_disk(str(tmp_path / "out"))["_index"][:] == sorted(expected)


def test_function_score(corpus: Path, tmp_path: Path) -> None:
    function = {"step": "score", "function": f"{FUNCTIONS}:length_score", "parameters": {"sign": -1}}
    run(recipe(corpus, function, {"step": "acquire", "count": 1}), tmp_path / "out")
    rows = rows_of(corpus)
    shortest = min(range(ROWS), key=lambda i: (len(rows[i]["text"]), i))
    assert datasets.load_from_disk(str(tmp_path / "out"))["_index"][:] == [shortest]


def test_same_shards_whatever_the_workers(corpus: Path, tmp_path: Path) -> None:
    steps = ({"step": "dedup"}, align(corpus), {"step": "acquire", "kind": "power", "shift": "lowest", "fraction": 0.5})
    for workers in (1, 2):
        run(recipe(corpus, *steps), tmp_path / str(workers), workers=workers)
    assert shards(tmp_path / "1") == shards(tmp_path / "2")
    assert len(shards(tmp_path / "1")) == 4


def test_reselect_scores_nothing_again(corpus: Path, tmp_path: Path) -> None:
    steps = ({"step": "dedup"}, align(corpus), {"step": "acquire", "fraction": 0.5})
    run(recipe(corpus, *steps), tmp_path / "out")
    (corpus / "target.json").unlink()
    manifest = reselect(tmp_path / "out", tmp_path / "less", fraction=0.1)
    assert manifest.rows_out == 90
    before, after = decisions(tmp_path / "out"), decisions(tmp_path / "less")
    assert before["alignment"].equals(after["alignment"])
    best = np.argsort(-before["alignment"].to_numpy(), kind="stable")[:90]
    assert np.flatnonzero(after["kept"].to_numpy()).tolist() == sorted(best.tolist())
    Dataset(tmp_path / "less").verify()


def test_reselect_refuses_changed_inputs(corpus: Path, tmp_path: Path) -> None:
    run(recipe(corpus, {"step": "score", "column": "quality"}, {"step": "acquire", "count": 9}), tmp_path / "out")
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"text": "new", "quality": 1.0, "group": "g1"}\n')
    with pytest.raises(SourceError, match="changed since"):
        reselect(tmp_path / "out", tmp_path / "less", count=5)


def test_a_runtime_that_is_up_stays_up(corpus: Path, tmp_path: Path) -> None:
    run(recipe(corpus, {"step": "dedup"}), tmp_path / "out")
    assert ray.is_initialized()


def test_done_is_done(corpus: Path, tmp_path: Path) -> None:
    spec = recipe(corpus, {"step": "dedup"})
    first = run(spec, tmp_path / "out")
    assert run(spec, tmp_path / "out") == first


def test_a_score_made_after_the_cut_is_made_anew_where_the_cut_changes(corpus: Path, tmp_path: Path) -> None:
    steps = ({"step": "score", "column": "quality"}, {"step": "acquire", "fraction": 0.1}, align(corpus))
    run(recipe(corpus, *steps), tmp_path / "out")
    less = reselect(tmp_path / "out", tmp_path / "more", fraction=0.5)
    again = run(recipe(corpus, steps[0], {**steps[1], "fraction": 0.5}, steps[2]), tmp_path / "again")
    assert less.bad_rows == 0
    assert less.rows_out == again.rows_out == 500
    assert decisions(tmp_path / "more").equals(decisions(tmp_path / "again"))


QUALITY = {"step": "score", "column": "quality"}
BAD_RUNS: dict[str, tuple[list[dict[str, Any]], type[CurationError], str]] = {
    "no such column": ([{"step": "dedup", "column": "body"}], SourceError, "'body'.*text, quality, group"),
    "text scored": ([{"step": "score", "column": "text"}], SourceError, "'text' as a number, but it is string"),
    "number hashed": ([{"step": "dedup", "column": "quality"}], SourceError, "'quality' as text, but it is double"),
    "k above N": ([QUALITY, {"step": "acquire", "count": ROWS + 1}], StepError, f"{ROWS + 1} rows, but only {ROWS}"),
    "empty result": (
        [QUALITY, {"step": "acquire", "kind": "threshold", "threshold": 1e9}],
        StepError,
        "keeps none of 1000 rows: the scores run from",
    ),
    "no function": ([{"step": "score", "function": "json:nothing"}], RecipeError, "json:nothing"),
    "name taken": ([{**QUALITY, "name": "text"}], RecipeError, "column 'text'"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_recipes_leave_nothing(case: str, corpus: Path, tmp_path: Path) -> None:
    steps, kind, message = BAD_RUNS[case]
    with pytest.raises(kind, match=message):
        run(recipe(corpus, *steps), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("function", "message"), [("fails", "rows 0 to 179: KeyError: 'boo'"), ("too_few", r"\(1,\)")])
def test_a_users_function_that_fails(function: str, message: str, corpus: Path, tmp_path: Path) -> None:
    spec = recipe(corpus, {"step": "score", "function": f"{FUNCTIONS}:{function}"})
    with pytest.raises(StepError, match=message):
        run(spec, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "message"), [("two_told", "TwoToldError: one, two"), ("holding", "HoldingError: boo")]
)
def test_an_error_that_no_pickle_carries(function: str, message: str, corpus: Path, tmp_path: Path) -> None:
    spec = recipe(corpus, {"step": "score", "function": f"{FUNCTIONS}:{function}"})
    with pytest.raises(StepError, match=f"^{message}$"):
        run(spec, tmp_path / "out", workers=1)


@pytest.mark.parametrize("function", ["curation.pipelines.steps.align:target_texts", "math:sqrt"])
def test_a_function_of_what_is_installed_for_good_runs(function: str, corpus: Path, tmp_path: Path) -> None:
    spec = recipe(corpus, {"step": "score", "function": function})
    with pytest.raises(StepError, match=f"score: {function} failed on rows 0 to 179: "):
        run(spec, tmp_path / "out", workers=1)


def test_a_task_that_no_node_has_room_for_is_told_before_anything_runs(corpus: Path, tmp_path: Path) -> None:
    class Told(Silent):
        def note(self, text: str) -> None:
            raise InterruptedError(text)

    cut = {"step": "acquire", "count": 9, "resources": {"cpus": 2, "gpus": 3}}
    spec = recipe(corpus, {"step": "score", "column": "quality"}, cut)
    with pytest.raises(InterruptedError, match=r"step 2 \(acquire\) asks for 2 CPU, 3 GPU.* wait until one joins"):
        run(spec, tmp_path / "out", progress=Told())
    with pytest.raises(StepError, match="no node has as much, only 2 CPU, .*: lower its `resources`"):
        check_room({"output": Resources(cpus=3)}, grows=False, note=print)
    check_room({"output": Resources(cpus=2)}, grows=False, note=print)


BAD_LINES = {
    "not JSON": ('{"text": "x", "quality": 1.0', "JSON"),
    "null text": ('{"text": null, "quality": 1.0, "group": "g"}', "'text': text is null or empty"),
    "empty text": ('{"text": "", "quality": 1.0, "group": "g"}', "'text': text is null or empty"),
    "NaN": ('{"text": "x", "quality": null, "group": "g"}', "'quality': not a finite number"),
    "wrong type": ('{"text": "x", "quality": "high", "group": "g"}', "quality"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_rows_stop_the_run_or_are_set_aside(case: str, corpus: Path, tmp_path: Path) -> None:
    line, reason = BAD_LINES[case]
    path = corpus / "a.jsonl"
    lines = path.read_text().splitlines()
    lines[100] = line
    path.write_text("\n".join(lines) + "\n")
    steps = ({"step": "dedup"}, QUALITY, {"step": "acquire", "fraction": 0.5})
    with pytest.raises(BadRowError, match=f"a.jsonl, row 100: .*{reason}"):
        run(recipe(corpus, *steps), tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()

    out = tmp_path / "out"
    manifest = run(recipe(corpus, *steps, on_bad_row="quarantine"), out)
    assert manifest.bad_rows == 1
    aside = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["index"], row["row"]) for row in aside] == [(100, 100)]
    assert decisions(out)["reason"][100].as_py() == "bad row"
    assert math.isclose(manifest.rows_in, ROWS)
    Dataset(out).verify()


def test_a_function_that_gives_nan(corpus: Path, tmp_path: Path) -> None:
    function = {"step": "score", "function": f"{FUNCTIONS}:nan_for_some"}
    with pytest.raises(BadRowError, match="row 3: the score is not a finite number"):
        run(recipe(corpus, function), tmp_path / "stopped", workers=1)
    manifest = run(recipe(corpus, function, on_bad_row="quarantine"), tmp_path / "out")
    expected = len([i for i in range(ROWS) if i % 7 == 3])
    assert manifest.bad_rows == expected
    assert manifest.steps[0].dropped == {"bad row": expected}
    assert manifest.rows_out == ROWS - expected
    Dataset(tmp_path / "out").verify()


def test_output_that_is_not_ours(corpus: Path, tmp_path: Path) -> None:
    spec = recipe(corpus, {"step": "dedup"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="no curated dataset"):
        run(spec, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    run(spec, tmp_path / "out")
    with pytest.raises(OutputError, match="another recipe"):
        run(recipe(corpus, {"step": "dedup"}, seed=1), tmp_path / "out")


def test_missing_input(tmp_path: Path) -> None:
    spec = Recipe.model_validate(
        {"source": {"format": "parquet", "path": str(tmp_path / "no.parquet")}, "steps": [{"step": "dedup"}]}
    )
    with pytest.raises(SourceError, match="no.parquet"):
        run(spec, tmp_path / "out")


def test_every_task_takes_resources(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[float]] = {}

    def told(task: Any, pieces: Any, *, label: str, resources: Any = None, **options: Any) -> None:
        asked.setdefault(label, set()).add(resources.cpus)
        run_pieces(task, pieces, label=label, resources=resources, **options)

    for module in ("ray", "stages"):
        monkeypatch.setattr(f"curation.pipelines.engine.{module}.run_pieces", told)
    steps = [
        {"step": "dedup", "resources": {"cpus": 0.5}},
        {"step": "score", "column": "quality", "resources": {"cpus": 0.6, "gpus": 0}},
        {"step": "acquire", "count": 5, "per": "group", "resources": {"cpus": 0.7}},
    ]
    others = {"resources": {"cpus": 0.8}, "output": {"rows_per_shard": 130, "resources": {"cpus": 0.9}}}
    spec = recipe(corpus, *steps, **others)
    run(spec, tmp_path / "out", workers=1)
    assert asked == {
        **{"check rows": {0.8}, "MarkBad": {0.8}},
        **{"1. dedup": {0.5}, "DropDuplicates": {0.5}},
        **{"2. score": {0.6}, "MergeVerdicts": {0.6}},
        **{"3. acquire": {0.7}, "Draw": {0.7}},
        **{"Keep": {0.9}, "write shards": {0.9}, "FinishDataset": {0.9}},
    }
    plain = [{key: value for key, value in step.items() if key != "resources"} for step in steps]
    assert spec.sha256() == recipe(corpus, *plain).sha256()


def test_stored_scores_are_found_however_the_blocks_were_cut(corpus: Path, tmp_path: Path) -> None:
    steps = ({"step": "score", "column": "quality"}, {"step": "acquire", "count": 50})
    run(recipe(corpus, *steps, block_bytes=10_000), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"block_bytes": 10000', '"block_bytes": 15000'))
    assert Manifest.load(tmp_path / "out").recipe["block_bytes"] == 15_000
    reselect(tmp_path / "out", tmp_path / "fewer", count=20)
    run(recipe(corpus, *steps[:1], {"step": "acquire", "count": 20}), tmp_path / "direct")
    assert decisions(tmp_path / "fewer").equals(decisions(tmp_path / "direct"))
