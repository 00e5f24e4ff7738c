"""What scores and reasons of steps may be called, and how many reasons there may be."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation import Dataset
from curation.errors import RecipeError
from curation.pipelines import Acquire, BlockStep, Dedup, Score, Step, Verdict, run
from curation.pipelines.steps.check import MOST_REASONS, check_columns

ROWS = pa.table({"text": list("abcdef"), "value": range(6)})


class Reasons(BlockStep):
    """Drops the first row, for the last of many reasons."""

    words: list[str]

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(self.words)

    def judge(self, rows: pa.Table) -> Verdict:
        return Verdict(dropped=np.where(np.arange(len(rows)) == 0, len(self.words), 0))


@pytest.mark.parametrize("name", ["index", "kept", "reason", "weight", "pick", "duplicate_of", "_index", "_weight"])
def test_a_score_is_not_called_like_a_column_of_the_output(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"step 1 \(score\) makes a score '{name}'"):
        check_columns([Score(column="value", name=name)], ROWS.schema)


def test_reasons_can_be_told_apart() -> None:
    with pytest.raises(RecipeError, match="has a reason twice: one, two, one"):
        check_columns([Reasons(words=["one", "two", "one"])], ROWS.schema)
    many = Reasons(words=[str(number) for number in range(MOST_REASONS - 1)])
    check_columns([many, Dedup()], ROWS.schema)
    with pytest.raises(RecipeError, match="the steps have 127 reasons, and decisions can tell 126 apart"):
        check_columns([many, Dedup(), Dedup()], ROWS.schema)


def test_as_many_reasons_as_can_be_told_apart(ray_session: None, tmp_path: Path) -> None:
    many = Reasons(words=[str(number) for number in range(MOST_REASONS - 1)])
    steps: list[Step] = [many, Score(column="value"), Acquire(count=2)]
    run(steps, source=ROWS, out=tmp_path / "out")
    Dataset(tmp_path / "out").verify()
    assert Dataset(tmp_path / "out").decisions.counts() == {
        "kept": 2,
        f"1. {many.step}: {MOST_REASONS - 2}": 1,
        "3. acquire: below the cut": 3,
    }
