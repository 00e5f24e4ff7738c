"""Edits of recipe, targets, code and rows between an interrupted run and the next one."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.dataset import Dataset
from curation.dataset.manifest import Manifest
from curation.errors import BadRowError, CurationError, OutputError, SourceError, StepError
from curation.pipelines.job import run
from curation.progress import Silent
from curation.recipe import Recipe

from ..conftest import align, recipe

SCORER = """
from pathlib import Path

import helper

def score(table, weight=1.0):
    texts = table["text"].to_pylist()
    switch = Path(__file__).with_name("broken")
    if switch.exists() and any(text.startswith("def f500(") for text in texts):
        raise RuntimeError("interrupted here")
    return [helper.value(text) * weight for text in texts]
"""
INTERRUPTED = "interrupted here"


class Notes(Silent):
    """Keeps what is told, and the rows that each stage found done."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: dict[str, int] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, rows: int, done: int = 0) -> None:
        self.done[stage] = done


@pytest.fixture
def home(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None) -> Iterator[Path]:
    """A folder with a score function ``scorer:score``, which fails in the middle while a file ``broken`` is there."""
    (tmp_path / "scorer.py").write_text(SCORER)
    (tmp_path / "helper.py").write_text("def value(text):\n    return float(len(text))\n")
    (tmp_path / "broken").touch()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("scorer", "helper"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def spec(home: Path, *, count: int = 100, **changes: Any) -> Recipe:
    steps = [
        *changes.pop("before", ()),
        align(home / "corpus"),
        {"step": "score", "function": "scorer:score", "parameters": changes.pop("parameters", {})},
        {"step": "acquire", "kind": "softmax", "count": count, "score": "alignment"},
    ]
    few = {"block_rows": 200, "output": {"rows_per_shard": 40}}
    return recipe(home / "corpus", *steps, **{**few, **changes})


def interrupted(home: Path, **changes: Any) -> None:
    with pytest.raises(CurationError, match=INTERRUPTED):
        run(spec(home, **changes), home / "out", workers=1)
    (home / "broken").unlink()


def pieces(home: Path, stage: str) -> dict[Path, int]:
    found = (home / "out.partial").glob(f"{stage}-*/[0-9]*")
    return {path: path.stat().st_mtime_ns for path in found if path.suffix != ".tries"}


def shards(out: Path) -> dict[str, str]:
    return {name: record.sha256 for name, record in Manifest.load(out).files.items() if name.endswith(".arrow")}


def same_as_fresh(home: Path, recipe: Recipe) -> None:
    run(recipe, home / "fresh")
    assert shards(home / "out") == shards(home / "fresh")
    Dataset(home / "out").verify()


def edit_target(home: Path) -> None:
    (home / "corpus" / "target.json").write_text(json.dumps({"text": "yield token open file"}) + "\n")


def edit_function(home: Path) -> None:
    (home / "scorer.py").write_text(SCORER.replace("* weight", "* weight + 1"))


def edit_helper(home: Path) -> None:
    (home / "helper.py").write_text("def value(text):\n    return float(-len(text))\n")


@pytest.mark.parametrize(
    ("edit", "stage", "words"),
    [
        (edit_target, "1. align", "target.json changed"),
        (edit_function, "2. score", "scorer:score changed"),
        (edit_helper, "2. score", "scorer:score changed"),
    ],
    ids=["target", "function", "helper"],
)
def test_what_depends_on_an_edit_is_done_anew(edit: Callable[[Path], None], stage: str, words: str, home: Path) -> None:
    interrupted(home)
    edit(home)
    notes = Notes()
    run(spec(home), home / "out", progress=notes)
    assert [note for note in notes.notes if stage in note and words in note]
    assert notes.done[stage] == 0
    same_as_fresh(home, spec(home))


def test_what_holds_is_kept_and_named(home: Path) -> None:
    interrupted(home)
    before = pieces(home, "01-align") | pieces(home, "02-score")
    assert len(pieces(home, "02-score")) > 2
    (home / "broken").touch()
    changed = {"count": 50, "output": {"rows_per_shard": 20}, "seed": 3}
    with pytest.raises(CurationError, match=INTERRUPTED):
        run(spec(home, **changed), home / "out", workers=1)
    (home / "broken").unlink()
    assert before.items() <= (pieces(home, "01-align") | pieces(home, "02-score")).items()
    notes = Notes()
    run(spec(home, **changed), home / "out", progress=notes)
    assert "goes on after 1. align, which an interrupted run has finished" in notes.notes
    assert notes.done["2. score"] > 0
    same_as_fresh(home, spec(home, **changed))


def test_a_cut_that_cannot_be_made_costs_nothing_when_it_is_corrected(home: Path) -> None:
    (home / "broken").unlink()
    dedup = {"before": [{"step": "dedup"}]}
    with pytest.raises(StepError, match="lower `count`"):
        run(spec(home, count=950, **dedup), home / "out")
    notes = Notes()
    run(spec(home, count=20, **dedup), home / "out", progress=notes)
    assert "2. align" not in notes.done
    assert "3. score" not in notes.done
    assert "goes on after 3. score, which an interrupted run has finished" in notes.notes
    same_as_fresh(home, spec(home, count=20, **dedup))


def test_parameters_of_a_function_are_its_own(home: Path) -> None:
    interrupted(home, parameters={"weight": 2.0})
    notes = Notes()
    run(spec(home, parameters={"weight": 3.0}), home / "out", progress=notes)
    assert any("parameters changed" in note for note in notes.notes)
    same_as_fresh(home, spec(home, parameters={"weight": 3.0}))


@pytest.mark.parametrize("edit", [edit_target, edit_helper], ids=["target", "helper"])
def test_a_finished_dataset_is_not_taken_for_one_of_other_targets_or_code(
    edit: Callable[[Path], None], home: Path
) -> None:
    (home / "broken").unlink()
    first = run(spec(home), home / "out")
    assert run(spec(home), home / "out") == first
    edit(home)
    with pytest.raises(OutputError, match="the same recipe, but of step . .*changed: give another output folder"):
        run(spec(home), home / "out")


def test_code_that_is_edited_while_it_runs_stops_the_run(home: Path) -> None:
    (home / "broken").unlink()
    (home / "scorer.py").write_text(
        SCORER.replace(
            "    texts =",
            "    source = Path(__file__)\n    source.write_text(source.read_text() + '# more')\n    texts =",
        )
    )
    with pytest.raises(CurationError, match="scorer:score (was edited|changed) while the run used it"):
        run(spec(home), home / "out", workers=1)
    (home / "scorer.py").write_text(SCORER)
    run(spec(home), home / "out")
    same_as_fresh(home, spec(home))


def test_targets_that_change_while_they_are_used_stop_the_run(home: Path) -> None:
    (home / "broken").unlink()
    notes = Notes()
    notes.begin = lambda stage, rows, done=0: edit_target(home) if stage == "1. align" else None  # type: ignore[method-assign]
    with pytest.raises(SourceError, match=r"target.json changed while the run used it: run the same command again"):
        run(spec(home), home / "out", progress=notes)
    assert pieces(home, "01-align") == {}
    run(spec(home), home / "out")
    same_as_fresh(home, spec(home))


def test_quarantine_may_be_switched_on_and_off(home: Path) -> None:
    path = home / "corpus" / "a.jsonl"
    lines = path.read_text().splitlines()
    lines[200] = '{"text": "", "quality": 1.0, "group": "g"}'
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadRowError, match=r"a\.jsonl, row 200"):
        run(spec(home), home / "out", workers=1)
    held = pieces(home, "00-check")
    assert held
    interrupted(home, on_bad_row="quarantine")
    assert held.items() <= pieces(home, "00-check").items()
    with pytest.raises(BadRowError, match=r"a\.jsonl, row 200"):
        run(spec(home), home / "out")
    run(spec(home, on_bad_row="quarantine"), home / "out")
    same_as_fresh(home, spec(home, on_bad_row="quarantine"))


def test_other_rows_are_refused_and_lose_nothing(home: Path) -> None:
    interrupted(home)
    before = pieces(home, "01-align")
    with (home / "corpus" / "c.jsonl").open("a") as file:
        file.write('{"text": "new", "quality": 1.0, "group": "g1"}\n')
    with pytest.raises(OutputError, match="interrupted run with another input and cut into blocks, so that nothing"):
        run(spec(home), home / "out")
    with pytest.raises(OutputError, match="another input and cut into blocks, so"):
        run(spec(home, block_rows=32), home / "out")
    assert pieces(home, "01-align") == before
    run(spec(home), home / "out", restart=True)
    same_as_fresh(home, spec(home))


def test_only_what_the_run_names_is_published(home: Path) -> None:
    interrupted(home)
    run(spec(home), home / "first")
    (home / "broken").touch()
    with pytest.raises(CurationError, match=INTERRUPTED):
        run(spec(home, seed=1, parameters={"weight": 2}), home / "out", workers=1)
    (home / "broken").unlink()
    notes = Notes()

    def litter(stage: str, rows: int, done: int = 0) -> None:
        # What a worker leaves that is killed while it writes, and a task of another cut.
        for folder in (home / "out.partial").glob("04-write-*/dataset"):
            (folder / ".data-00000-of-00002.arrow.0123.tmp").write_bytes(b"torn")
            (folder / "data-00000-of-00099.arrow").write_bytes(b"of another cut")

    notes.begin = litter  # type: ignore[method-assign]
    run(spec(home), home / "out", progress=notes)
    assert {path.name for path in (home / "out").iterdir()} == {path.name for path in (home / "first").iterdir()}
    Dataset(home / "out").verify()
