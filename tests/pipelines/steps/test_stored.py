"""Stored verdicts give what judging again would give."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import Dataset
from curation.errors import SourceError
from curation.pipelines import NUMBER, Acquire, BlockStep, Kind, Score, Verdict, reselect, run
from curation.progress import Silent
from curation.recipe.model import Made


class Judged(BlockStep):
    """Three scores, two reasons, and bad rows that have a score."""

    @property
    def scores(self) -> tuple[str, ...]:
        return ("once.twice", "once-twice", "once twice")

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("second of five", "third of five")

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {"value": NUMBER}

    def judge(self, rows: pa.Table) -> Verdict:
        value = rows["value"].to_numpy()
        return Verdict(
            {name: value * factor for factor, name in enumerate(self.scores, 1)},
            dropped=(value % 5 == 1) + 2 * (value % 5 == 2),
            bad=dict.fromkeys(np.flatnonzero(value % 7 == 3).tolist(), "unlucky"),
        )


@pytest.fixture
def rows(ray_session: None, tmp_path: Path) -> Path:
    pq.write_table(pa.table({"value": np.random.default_rng(0).permutation(200)}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def account(out: Path) -> dict[str, Any]:
    dataset = Dataset(out)
    dataset.verify()
    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return {
        "rows": dataset.rows(range(len(dataset))),
        "counts": dataset.decisions.counts(),
        "quarantine": quarantine,
        "steps": [(step.rows_in, step.rows_out, step.dropped) for step in dataset.manifest.steps],
    }


def test_rows_that_were_set_aside_stay_so(rows: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": rows, "on_bad_row": "quarantine", "block_rows": 32}
    run([Judged(), Acquire(fraction=0.5)], out=tmp_path / "half", **options)
    run([Judged(), Acquire(fraction=0.9)], out=tmp_path / "most", **options)
    reselect(str(tmp_path / "half"), str(tmp_path / "again"), fraction=0.9)
    expected = account(tmp_path / "most")
    assert account(tmp_path / "again") == expected
    assert expected["counts"]["bad row"] == sum(value % 7 == 3 for value in range(200))


def test_scores_of_names_that_are_nearly_the_same_are_kept_apart(rows: Path, tmp_path: Path) -> None:
    run([Judged()], out=tmp_path / "out", source=rows, on_bad_row="quarantine")
    dataset = Dataset(tmp_path / "out")
    kept = dataset.rows(range(len(dataset)))
    for factor, name in enumerate(Judged().scores, 1):
        np.testing.assert_array_equal(kept[name], np.array(kept["value"]) * factor)


@pytest.mark.parametrize("on_bad_row", ["stop", "quarantine"])
def test_another_seed_scores_the_rows_of_another_first_draw(rows: Path, on_bad_row: Any, tmp_path: Path) -> None:
    steps = [
        Score(name="first", column="value"),
        Acquire(kind="power", fraction=0.5),
        Score(name="second", column="value"),
        Acquire(kind="power", fraction=0.5),
    ]
    options: dict[str, Any] = {"source": rows, "on_bad_row": on_bad_row, "block_rows": 32}
    run(steps, out=tmp_path / "one", seed=1, **options)
    run(steps, out=tmp_path / "two", seed=2, **options)
    reselect(tmp_path / "one", tmp_path / "again", seed=2)
    expected, again = Dataset(tmp_path / "two"), Dataset(tmp_path / "again")
    assert again.decisions.counts() == expected.decisions.counts()
    assert again.rows(range(len(again))) == expected.rows(range(len(expected)))


FILTER = """
import numpy as np
from curation.pipelines import BlockStep, Verdict

class Drop(BlockStep):
    @property
    def reasons(self):
        return ("third of five",)

    def judge(self, rows):
        return Verdict(dropped=np.array(rows["value"]) % 5 == 2)

def score(rows):
    return rows["value"].to_pylist()
"""


@pytest.fixture
def home(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a step ``dropping:Drop`` and a function ``dropping:score``."""
    (tmp_path / "dropping.py").write_text(FILTER)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("dropping", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.parametrize("on_bad_row", ["stop", "quarantine"])
def test_rows_that_were_never_scored_are_not_taken_for_bad_ones(home: Path, on_bad_row: Any) -> None:
    steps: list[Any] = [{"step": "dropping:Drop"}, Score(column="value"), Acquire(count=50)]
    run(steps, out=home / "half", source=home / "rows.parquet", on_bad_row=on_bad_row)
    (home / "dropping.py").write_text(FILTER.replace("== 2", "== 3"))
    with pytest.raises(SourceError, match=r"rows.parquet, row \d+: has no stored score, as it did not reach 2. score"):
        reselect(home / "half", home / "again", count=40)


def test_what_made_stored_scores_may_be_gone(home: Path) -> None:
    steps: list[Any] = [
        {"step": "score", "function": "dropping:score"},
        {"step": "acquire", "count": 50},
    ]
    run(steps, out=home / "half", source=home / "rows.parquet")
    (home / "dropping.py").unlink()
    sys.modules.pop("dropping")
    assert reselect(home / "half", home / "again", count=40).rows_out == 40


def test_stored_scores_need_no_gpu(home: Path) -> None:
    run([Score(column="value"), Acquire(count=50)], out=home / "half", source=home / "rows.parquet")
    manifest = json.loads((home / "half" / "manifest.json").read_text())
    manifest["recipe"]["steps"][0]["resources"] = {"gpus": 1}
    (home / "half" / "manifest.json").write_text(json.dumps(manifest))
    assert reselect(home / "half", home / "again", count=40, progress=Untold()).rows_out == 40


class Untold(Silent):
    """Stops a run that would wait for a node."""

    def note(self, text: str) -> None:
        raise AssertionError(text)
