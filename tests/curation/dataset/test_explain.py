"""``explain`` says why, for each way a row can go."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.dataset import Dataset
from curation.dataset.manifest import DECISIONS
from curation.errors import SourceError

from ..conftest import Finished


def positions(out: Path, reason: str) -> list[int]:
    with pa.memory_map(str(out / DECISIONS)) as source:
        table = pa.ipc.open_file(source).read_all()
    return np.flatnonzero(table["reason"].to_numpy().astype(str) == reason).tolist()


def test_a_kept_row_comes_from_its_shard(finished: Finished) -> None:
    out = finished().folder
    (tmp_source := out.parent / "source.parquet").unlink()
    index = positions(out, "kept")[4]
    explanation = Dataset(out).explain(index)
    assert not tmp_source.exists()
    assert explanation.kept
    assert explanation.pick is not None
    assert explanation.sentence.startswith(f"It was kept: number {explanation.pick + 1} in the order of the last draw.")
    assert explanation.row is not None
    assert explanation.row.where == "data-00000-of-00003.arrow, row 4"
    assert set(explanation.row.values) == {"text", "source", "value"}
    assert explanation.row.values["value"] == explanation.scores["quality"].value
    ((cut, standing),) = explanation.cuts
    assert standing.rank == explanation.pick + 1
    assert explanation.scores["quality"].value >= cut.value


def test_a_row_below_the_cut_comes_from_the_source(finished: Finished) -> None:
    out = finished().folder
    index = positions(out, "3. acquire: below the cut")[-1]
    explanation = Dataset(out).explain(index)
    ((cut, standing),) = explanation.cuts
    assert explanation.sentence == (
        f"It was dropped at step 3 (acquire): below the cut. Its quality is {standing.value:g}, rank "
        f"{standing.rank} of the 360 that reached step 3; the cut on quality is {cut.value:g}."
    )
    assert standing.rank > cut.passed
    assert explanation.row is not None
    assert explanation.row.values["text"].startswith("def function_")
    assert explanation.row.where == f"{out.parent / 'source.parquet'}, row {index}"


def test_a_duplicate_names_the_earlier_row(finished: Finished) -> None:
    out = finished().folder
    explanation = Dataset(out).explain(30)
    assert explanation.duplicate_of == 29
    assert (
        explanation.sentence
        == "It was dropped at step 2 (dedup): same text as an earlier row. The earlier row is at position 29."
    )
    assert explanation.cuts == []
    assert explanation.scores["quality"].of == 399


def test_a_bad_row_gives_the_quarantines_reason(finished: Finished) -> None:
    out = finished().folder
    explanation = Dataset(out).explain(7)
    assert explanation.sentence == "It was set aside as a bad row: text is null."
    assert explanation.scores == {}


def test_a_draw_has_no_single_cut(finished: Finished) -> None:
    out = finished(kind="power").folder
    explanation = Dataset(out).explain(positions(out, "kept")[0])
    assert "a stochastic draw (power, beta 1) has no single cut" in explanation.sentence


def test_a_source_that_is_gone_or_changed_is_said(finished: Finished) -> None:
    out = finished().folder
    index = positions(out, "3. acquire: below the cut")[0]
    source = out.parent / "source.parquet"
    data = bytearray(source.read_bytes())
    at = data.index(b"function_1")
    data[at] ^= 1
    source.write_bytes(data)
    explanation = Dataset(out).explain(index)
    assert explanation.row is None
    assert explanation.note == f"{source} has changed since it was read"
    source.unlink()
    explanation = Dataset(out).explain(index)
    assert explanation.row is None
    assert explanation.note is not None
    assert explanation.note.startswith("the source cannot be read any more")


@pytest.mark.parametrize("index", [-1, 400])
def test_no_such_candidate(finished: Finished, index: int) -> None:
    out = finished().folder
    with pytest.raises(SourceError, match="positions go from 0 to 399"):
        Dataset(out).explain(index)
