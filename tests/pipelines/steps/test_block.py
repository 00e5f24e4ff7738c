"""Verdicts on blocks, merged, beside a plain loop over all rows."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import BadRowError, StepError
from curation.pipelines import BlockStep, Verdict
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.block import JudgeBlock, MergeVerdicts
from curation.recipe import FileSource
from curation.sources import open_source

CODE = 5


class Judge(BlockStep):
    """Judges rows by what stands in them."""

    step: Literal["judge"] = "judge"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("one", "two")

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("first", "second")

    def judge(self, rows: pa.Table) -> Verdict:
        value = rows["value"].to_numpy()
        return Verdict(
            {"one": value, "two": -value.astype(float)},
            dropped=value % 3,
            bad=dict.fromkeys(np.flatnonzero(value == 7).tolist(), "seven"),
            counts={"rows": len(rows)},
        )


def run(step: BlockStep, values: list[int], out: list[int], block_rows: int, folder: Path) -> dict[str, Any]:
    """Judge and merge; everything that is left on disk."""
    pq.write_table(pa.table({"value": pa.array(values, pa.int64())}), folder / "rows.parquet")
    source = open_source(FileSource(format="parquet", path=str(folder / "rows.parquet")))
    np.save(folder / "before.npy", np.array(out, np.int8))
    stage, second = Stage(folder / "stage"), Stage(folder / "second")
    blocks = source.blocks(block_rows)
    task = JudgeBlock(source, stage, {"one": stage, "two": second}, folder / "before.npy", None, step, True)
    for block in blocks:
        task(block)
    MergeVerdicts(stage, folder / "before.npy", blocks, CODE, 2)()
    scores = [np.concatenate([np.load(each.piece(block.number)) for block in blocks]) for each in (stage, second)]
    bad = [json.loads(line) for block in blocks for line in stage.piece(block.number, "jsonl").read_text().splitlines()]
    return {"reason": np.load(stage.folder / "reason.npy"), "scores": scores, "listed": bad, **(stage.done or {})}


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 1, 2])), min_size=1, max_size=60),
    block_rows=st.integers(1, 25),
)
def test_verdicts_are_those_of_a_loop(rows: list[tuple[int, int]], block_rows: int) -> None:
    values, out = [value for value, _ in rows], [reason for _, reason in rows]
    expected, bad = [], []
    for position, (value, reason) in enumerate(rows):
        if reason == 0 and value == 7:
            bad.append(position)
        expected.append(reason or (1 if value == 7 else [0, CODE, CODE + 1][value % 3]))
    with tempfile.TemporaryDirectory() as folder:
        if 0 not in expected:
            with pytest.raises(StepError, match="no row is left"):
                run(Judge(), values, out, block_rows, Path(folder))
            return
        done = run(Judge(), values, out, block_rows, Path(folder))
    assert done["reason"].tolist() == expected
    scores = [float("nan") if reason or value == 7 else float(value) for value, reason in rows]
    np.testing.assert_array_equal(done["scores"][0], scores)
    np.testing.assert_array_equal(done["scores"][1], -np.array(scores))
    assert [row["index"] for row in done["listed"]] == bad
    assert done["rows_out"] == expected.count(0)
    assert done["dropped"] == [expected.count(CODE), expected.count(CODE + 1)]
    assert done["counts"] == {"rows": out.count(0)}


class Wrong(Judge):
    """Says what does not fit."""

    step: Literal["wrong"] = "wrong"  # type: ignore[assignment]
    fault: str

    def judge(self, rows: pa.Table) -> Any:
        scores = {"one": np.zeros(len(rows)), "two": np.zeros(len(rows))}
        verdicts: dict[str, Any] = {
            "no score": Verdict({"one": scores["one"]}),
            "short": Verdict(scores, dropped=np.zeros(1)),
            "unknown reason": Verdict(scores, dropped=np.full(len(rows), 3)),
            "far beyond": Verdict(scores, dropped=np.full(len(rows), 257)),
            "half": Verdict(scores, dropped=np.full(len(rows), 0.5)),
            "unknown": Verdict(scores, dropped=np.full(len(rows), np.nan)),
            "something else": scores,
        }
        return verdicts[self.fault]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no score", r"wrong: score 'two' has shape \(0,\) for 4 rows: it must be one value a row"),
        ("short", r"wrong: `dropped` has shape \(1,\) for 4 rows"),
        ("unknown reason", "`dropped` holds 3 to 3, but the step has 2 reasons: 0 stays"),
        ("far beyond", "`dropped` holds 257 to 257"),
        ("half", r"`dropped` holds 0\.5 to 0\.5"),
        ("unknown", "`dropped` holds nan to nan"),
        ("something else", "wrong: judge returned dict, not a Verdict"),
    ],
)
def test_a_verdict_that_does_not_fit(fault: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=message):
        run(Wrong(fault=fault), [1, 2, 3, 4], [0] * 4, 4, tmp_path)


def test_a_bad_row_stops_unless_it_is_set_aside(tmp_path: Path) -> None:
    pq.write_table(pa.table({"value": [1, 7]}), tmp_path / "rows.parquet")
    source = open_source(FileSource(format="parquet", path=str(tmp_path / "rows.parquet")))
    np.save(tmp_path / "before.npy", np.zeros(2, np.int8))
    stage, second = Stage(tmp_path / "stage"), Stage(tmp_path / "second")
    task = JudgeBlock(source, stage, {"one": stage, "two": second}, tmp_path / "before.npy", None, Judge(), False)
    with pytest.raises(BadRowError, match=r"rows.parquet, row 1: seven"):
        task(source.blocks(2)[0])
    assert stage.finished("jsonl") == set()
