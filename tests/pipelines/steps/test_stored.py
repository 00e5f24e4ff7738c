"""Stored verdicts give what judging again would give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import Dataset
from curation.pipelines import NUMBER, Acquire, BlockStep, Kind, Score, Verdict, reselect, run
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
