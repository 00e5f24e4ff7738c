"""``explain`` says why, for each way a row can go."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.explain import explain
from curation.dataset.manifest import DECISIONS, Manifest
from curation.errors import SourceError

Finished = Callable[..., tuple[Path, Manifest]]


def positions(out: Path, reason: str) -> list[int]:
    with pa.memory_map(str(out / DECISIONS)) as source:
        table = pa.ipc.open_file(source).read_all()
    return np.flatnonzero(table["reason"].to_numpy().astype(str) == reason).tolist()


def test_a_kept_row_comes_from_its_shard(finished: Finished) -> None:
    out, _ = finished()
    (tmp_source := out.parent / "source.parquet").unlink()
    index = positions(out, "kept")[4]
    found = explain(out, index)
    assert not tmp_source.exists()
    assert found.kept
    assert found.pick is not None
    assert found.sentence.startswith(f"It was kept: number {found.pick + 1} in the order of the last draw.")
    assert found.row is not None
    assert found.row.where == "data-00000-of-00003.arrow, row 4"
    assert set(found.row.values) == {"text", "source", "value"}
    assert found.row.values["value"] == found.scores["quality"].value
    ((cut, place),) = found.cuts
    assert place.rank == found.pick + 1
    assert found.scores["quality"].value >= cut.value


def test_a_row_below_the_cut_comes_from_the_source(finished: Finished) -> None:
    out, _ = finished()
    index = positions(out, "3. acquire: below the cut")[-1]
    found = explain(out, index)
    ((cut, place),) = found.cuts
    assert found.sentence == (
        f"It was dropped at step 3 (acquire): below the cut. Its quality is {place.value:g}, rank {place.rank} of the "
        f"360 that reached step 3; the cut on quality is {cut.value:g}."
    )
    assert place.rank > cut.passed
    assert found.row is not None
    assert found.row.values["text"].startswith("def function_")
    assert found.row.where == f"{out.parent / 'source.parquet'}, row {index}"


def test_a_duplicate_names_the_earlier_row(finished: Finished) -> None:
    out, _ = finished()
    found = explain(out, 30)
    assert found.duplicate_of == 29
    assert found.sentence == "It was dropped at step 2 (dedup): duplicate. The earlier row is at position 29."
    assert found.cuts == []
    assert found.scores["quality"].of == 399


def test_a_bad_row_gives_the_quarantines_reason(finished: Finished) -> None:
    out, _ = finished()
    found = explain(out, 7)
    assert found.sentence == "It was set aside as a bad row: text is null."
    assert found.scores == {}


def test_a_draw_has_no_single_cut(finished: Finished) -> None:
    out, _ = finished(kind="power")
    found = explain(out, positions(out, "kept")[0])
    assert "a stochastic draw (power, beta 1) has no single cut" in found.sentence


def test_a_source_that_is_gone_or_changed_is_said(finished: Finished) -> None:
    out, _ = finished()
    index = positions(out, "3. acquire: below the cut")[0]
    source = out.parent / "source.parquet"
    data = bytearray(source.read_bytes())
    at = data.index(b"function_1")
    data[at] ^= 1
    source.write_bytes(data)
    found = explain(out, index)
    assert found.row is None
    assert found.note == f"{source} has changed since it was read"
    source.unlink()
    found = explain(out, index)
    assert found.row is None
    assert found.note is not None
    assert found.note.startswith("the source cannot be read any more")


@pytest.mark.parametrize("index", [-1, 400])
def test_no_such_candidate(finished: Finished, index: int) -> None:
    out, _ = finished()
    with pytest.raises(SourceError, match="positions go from 0 to 399"):
        explain(out, index)
