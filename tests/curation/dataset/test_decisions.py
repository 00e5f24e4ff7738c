"""Streaming answers over ``decisions.arrow`` equal those of plain numpy over the whole table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.dataset import Dataset
from curation.dataset.decisions import Decisions, Histogram, acquire_steps, as_floats, step_of
from curation.dataset.manifest import DECISIONS
from curation.dataset.writer import decisions_schema
from curation.errors import SourceError

from ..conftest import SCORE, Finished


def whole(out: Path) -> dict[str, np.ndarray]:
    with pa.memory_map(str(out / DECISIONS)) as source:
        table = pa.ipc.open_file(source).read_all()
    return {name: table[name].to_numpy() for name in table.column_names}


def with_scores(dataset: Dataset, scores: np.ndarray, batch: int) -> Decisions:
    """The same decisions on other scores."""
    out = dataset.folder
    with pa.memory_map(str(out / DECISIONS)) as source:
        table = pa.ipc.open_file(source).read_all()
    table = table.set_column(1, SCORE, pa.array(scores, mask=np.isnan(scores))).cast(decisions_schema([SCORE]))
    (out / DECISIONS).unlink()
    with pa.OSFile(str(out / DECISIONS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return Dataset(out).decisions


@pytest.mark.parametrize("batches", [1, 7, 400])
def test_counts_and_rows(finished: Finished, batches: int) -> None:
    dataset = finished(decision_batches=batches)
    decisions, table = dataset.decisions, whole(dataset.folder)
    names, counts = np.unique(table["reason"].astype(str), return_counts=True)
    found = decisions.counts()
    assert found == dict(zip(names.tolist(), counts.tolist(), strict=True))
    assert [step_of(reason) for reason in found][1:] == [0, 2, 3]
    assert next(iter(found)) == "kept"
    row = decisions.row(123)
    assert row is not None
    assert row["index"] == 123
    assert row[SCORE] == table[SCORE][123]
    assert decisions.row(400) is None
    assert sorted(decisions.rows([399, 0, 57, 0])) == [0, 57, 399]


@pytest.mark.parametrize("batches", [1, 7, 400])
def test_values_at_positions_keep_their_order(finished: Finished, batches: int) -> None:
    dataset = finished(decision_batches=batches)
    decisions, table = dataset.decisions, whole(dataset.folder)
    index = np.random.default_rng(2).permutation(400)[:90]
    found = decisions.at(index, [SCORE, "weight"])
    np.testing.assert_array_equal(found[SCORE], table[SCORE][index])
    np.testing.assert_array_equal(found["weight"], table["weight"][index])
    assert decisions.at(index[:0], [SCORE])[SCORE].shape == (0,)


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize(("kind", "sharp"), [("top-k", True), ("threshold", True), ("power", False)])
def test_cuts(finished: Finished, batches: int, kind: str, sharp: bool) -> None:
    dataset = finished(kind=kind, decision_batches=batches)
    table = whole(dataset.folder)
    (cut,) = dataset.decisions.cuts()
    kept = table["kept"].astype(bool)
    assert cut.sharp is sharp
    assert cut.value == (0.5 if kind == "threshold" else table[SCORE][kept].min())
    assert cut.passed == kept.sum()
    assert cut.dropped == (table["reason"].astype(str) == "3. acquire: below the cut").sum()
    assert cut.beta == (None if sharp else 1.0)


@pytest.mark.parametrize("batches", [1, 7])
def test_standings_are_ranks(finished: Finished, batches: int) -> None:
    dataset = finished(decision_batches=batches)
    decisions, table = dataset.decisions, whole(dataset.folder)
    score, reason = table[SCORE], table["reason"].astype(str)
    reached = (reason == "kept") | np.char.startswith(reason, "3.")
    order = np.lexsort((np.arange(400), -score))
    everyone = [i for i in order if not np.isnan(score[i])]
    candidates = [i for i in order if reached[i]]
    for index in np.flatnonzero(reached)[::17].tolist():
        row = decisions.row(index)
        assert row is not None
        over_all, at_step = decisions.standings(row, [(SCORE, 0), (SCORE, 3)])
        assert (over_all.rank, over_all.of) == (everyone.index(index) + 1, 399)
        assert (at_step.rank, at_step.of) == (candidates.index(index) + 1, len(candidates))
        assert at_step.percentile == pytest.approx(100 * (at_step.of - at_step.rank) / (at_step.of - 1))


@pytest.mark.parametrize("batches", [1, 7, 400])
def test_extremes(finished: Finished, batches: int) -> None:
    dataset = finished(kind="power", decision_batches=batches)
    decisions, table = dataset.decisions, whole(dataset.folder)
    score, reason = table[SCORE], table["reason"].astype(str)

    def lowest(mask: np.ndarray, key: np.ndarray) -> list[int]:
        index = np.flatnonzero(mask)
        return index[np.lexsort((index, key[index]))][:5].tolist()

    kept, out_here = reason == "kept", np.char.startswith(reason, "3.")
    assert decisions.extremes(SCORE, 3, 5) == {
        "best": lowest(kept, -score),
        "just in": lowest(kept, score),
        "just out": lowest(out_here, -score),
        "worst": lowest(~np.isnan(score), score),
    }


@pytest.mark.parametrize("batches", [1, 7])
def test_histograms_count_every_score(finished: Finished, batches: int) -> None:
    dataset = finished(decision_batches=batches)
    table = whole(dataset.folder)
    (found,) = dataset.decisions.histograms(12)
    score, kept = table[SCORE], table["kept"].astype(bool)
    there = ~np.isnan(score)
    np.testing.assert_array_equal(found.kept, np.histogram(score[kept], found.edges)[0])
    np.testing.assert_array_equal(found.dropped, np.histogram(score[there & ~kept], found.edges)[0])
    assert found.rows == 399
    assert found.beyond == 0
    assert (found.low, found.high) == (np.nanmin(score), np.nanmax(score))


def histogram_of(finished: Finished, scores: np.ndarray) -> list[Histogram]:
    dataset = finished()
    return with_scores(dataset, scores, 64).histograms(10)


def test_far_values_do_not_squeeze_the_histogram(finished: Finished) -> None:
    scores = np.random.default_rng(1).random(400)
    scores[[3, 4]] = 1e9, -np.inf
    (found,) = histogram_of(finished, scores)
    assert found.edges[-1] <= 1
    assert found.high == 1e9
    assert found.beyond >= 2
    assert found.rows == 400
    assert np.count_nonzero(found.kept + found.dropped) == 10


def test_equal_scores_have_a_histogram(finished: Finished) -> None:
    (found,) = histogram_of(finished, np.full(400, 2.0))
    assert found.edges[0] < 2 < found.edges[-1]
    assert found.rows == 400


def test_no_score_at_all_has_none(finished: Finished) -> None:
    assert histogram_of(finished, np.full(400, np.nan)) == []


def test_scores_come_as_floats() -> None:
    np.testing.assert_array_equal(as_floats(pa.array([1.0, None])), [1.0, np.nan])


def test_missing_or_broken_decisions(finished: Finished) -> None:
    out = finished().folder
    (out / DECISIONS).write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"decisions\.arrow: cannot be read"):
        Dataset(out).decisions  # noqa: B018
    (out / DECISIONS).unlink()
    with pytest.raises(SourceError, match=r"decisions\.arrow"):
        Dataset(out).decisions  # noqa: B018


@pytest.mark.parametrize("kind", ["top-k", "threshold", "power"])
def test_older_manifests_tell_cuts_by_their_recipe(finished: Finished, kind: str) -> None:
    dataset = finished(kind=kind)
    manifest = dataset.manifest
    before = [step.model_copy(update={"scores": [], "did": "", "details": {}}) for step in manifest.steps]
    older = manifest.model_copy(update={"steps": before})
    assert older.scores == manifest.scores == [SCORE]
    names = ("score", "kind", "threshold", "per", "beta")
    (cut,) = acquire_steps(manifest).values()
    (recipe,) = acquire_steps(older).values()
    assert {name: cut[name] for name in names} == {name: recipe[name] for name in names}
    assert Decisions(dataset.file(DECISIONS), older).cuts() == dataset.decisions.cuts()


def test_any_step_may_cut_and_score(finished: Finished) -> None:
    manifest = finished().manifest
    steps = [
        manifest.steps[0].model_copy(update={"step": "words", "scores": ["a", "b"]}),
        manifest.steps[1].model_copy(update={"step": "half", "details": {"score": "b", "kind": "median"}}),
        manifest.steps[2].model_copy(update={"step": "other", "details": {"score": "unknown", "kind": "top-k"}}),
    ]
    manifest = manifest.model_copy(update={"steps": steps})
    assert manifest.scores == ["a", "b"]
    assert acquire_steps(manifest) == {
        2: {"score": "b", "kind": "median", "per": None, "threshold": None, "beta": None}
    }
