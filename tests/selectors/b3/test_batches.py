"""Batches of an epoch: who is in, who is left out and why, and who is warned of before the search."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.plan import BatchPlan
from curation.selectors.b3 import B3
from curation.selectors.b3.batches import LAST, SURPLUS, foresee, regroup
from curation.selectors.b3.conflicts import conflict_columns, count_together


def check_whole(plan: BatchPlan, count: int) -> None:
    assert sorted(plan.indices.tolist()) == list(range(count))


def batches_of(plan: BatchPlan, count: int) -> Any:
    out = np.full(count, -1)
    out[plan.indices] = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    return out


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_every_row_is_in_a_batch_or_said_to_be_out(data: Any) -> None:
    """For all sizes, data sets and ids: no batch of one row, of several data sets, or of rows that must not meet."""
    count, size = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 6))
    batch_size = size * data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    datasets = rng.integers(0, data.draw(st.integers(1, 4)), count)
    last, surplus = data.draw(st.sampled_from(LAST)), data.draw(st.sampled_from(SURPLUS))
    names = data.draw(st.integers(1, 200))
    columns = conflict_columns(rng.integers(-1, names, (count, 2)), count) if data.draw(st.booleans()) else None
    options: Any = {"batch_size": batch_size, "apart": columns, "datasets": datasets, "last": last, "surplus": surplus}
    try:
        foresee(count, **options)
    except ValueError:
        assert surplus == "error"
        options["surplus"] = "drop"
    found = [regroup(np.arange(count) // size, cluster_size=size, epoch=epoch, **options) for epoch in range(2)]
    for grouping in found:
        plan = grouping.plan
        lengths = np.diff(plan.offsets)
        assert len(plan) == len(list(plan))
        left_out = np.concatenate([grouping.surplus, grouping.alone, grouping.short])
        assert sorted([*plan.indices, *left_out]) == list(range(count))
        assert all(len(set(datasets[batch])) == 1 for batch in plan)
        assert lengths.max(initial=0) <= batch_size
        assert lengths.min(initial=2) >= min(2, batch_size)
        met = 0 if columns is None else count_together(batches_of(plan, count), columns)
        assert met == grouping.together
        if options["surplus"] != "allow":
            assert met == 0
        if options["surplus"] != "drop" or columns is None:
            assert len(grouping.surplus) == 0
        if last == "drop":
            assert (lengths == batch_size).all()
            assert len(grouping.alone) == 0
        else:
            assert len(grouping.short) == 0
            ours = np.bincount(datasets)
            if columns is None:
                # One row has nobody; of batches of two, the odd one has nobody either.
                lone = (ours % batch_size == 1) & (batch_size > 1) & ((ours == 1) | (batch_size == 2))
                assert np.bincount(datasets[grouping.alone], minlength=len(ours)).tolist() == lone.tolist()
    assert found[0].counts().keys() == {"surplus", "alone", "short", "together"}


def test_only_one_community_is_cut_where_one_is_short() -> None:
    clusters = np.arange(100) // 8
    for epoch in range(20):
        plan = regroup(clusters, batch_size=24, cluster_size=8, epoch=epoch).plan
        check_whole(plan, 100)
        assert np.diff(plan.offsets).tolist() == [24, 24, 24, 24, 4]
        homes = [{b for b, batch in enumerate(plan) if (clusters[batch] == c).any()} for c in range(13)]
        assert sum(len(home) > 1 for home in homes) <= 1


def test_leftovers_are_no_positions() -> None:
    # Public code fills leftovers by position, so that the first K rows come up again and again.
    clusters = np.random.default_rng(0).permutation(100) // 8
    last = Counter[int]()
    for epoch in range(200):
        plan = regroup(clusters, batch_size=24, cluster_size=8, epoch=epoch).plan
        check_whole(plan, 100)
        last.update(plan[-1].tolist())
    # 4 places in 200 epochs over 100 rows: 8 times each on average, and nobody always or never.
    assert max(last.values()) < 40
    assert len(last) > 90


def test_a_last_batch_takes_a_row_rather_than_be_of_one() -> None:
    found = regroup(np.arange(129) // 8, batch_size=64, cluster_size=8)
    assert np.diff(found.plan.offsets).tolist() == [64, 63, 2]
    check_whole(found.plan, 129)
    many = regroup(np.arange(429), batch_size=64, cluster_size=8, datasets=np.arange(429))
    assert len(many.plan) == 0
    assert many.alone.tolist() == list(range(429))


CASES: dict[str, tuple[int, int, int, int]] = {
    # Rows, copies of one text among them, batch size, rows that are left out.
    "a pair in a small data set": (50, 2, 64, 1),
    "33 copies in 32 batches": (2000, 33, 64, 1),
    "32 copies in 32 batches": (2000, 32, 64, 0),
    "copies alone": (4, 4, 64, 4),
    "half of all": (100, 50, 10, 40),
}


@pytest.mark.parametrize("case", CASES)
def test_more_copies_than_batches(case: str, caplog: pytest.LogCaptureFixture) -> None:
    rows, copies, size, expected = CASES[case]
    ids = np.full(rows, -1)
    ids[np.random.default_rng(0).permutation(rows)[:copies]] = 7
    columns = conflict_columns(ids, rows)
    assert columns is not None
    options: Any = {"batch_size": size, "apart": columns}
    seen = Counter[int]()
    for epoch in range(8):
        dropped = regroup(np.arange(rows), cluster_size=1, epoch=epoch, **options)
        assert len(dropped.surplus) == expected
        assert set(ids[dropped.surplus]) <= {7}
        seen.update(dropped.surplus.tolist())
        met = regroup(np.arange(rows), cluster_size=1, epoch=epoch, surplus="allow", **options)
        check_whole(met.plan, rows)
        assert (met.together > 0) == (expected > 0)
    if 0 < expected < copies:
        # In each epoch others.
        assert len(seen) > expected
    batches = -(-rows // size)
    foresee(rows, **options)
    if expected == 0:
        assert not caplog.text
        foresee(rows, surplus="error", **options)
        return
    assert f"{copies} rows must be kept apart (row {np.flatnonzero(ids == 7)[0]} is one)" in caplog.text
    with pytest.raises(ValueError, match=f"{copies} rows must be kept apart .* but there are {batches} batches: use"):
        foresee(rows, surplus="error", **options)
    with pytest.raises(ValueError, match="choose surplus"):
        regroup(np.arange(rows), cluster_size=1, surplus="error", **options)


def test_an_error_comes_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this is the dear part")

    monkeypatch.setattr("curation.selectors.b3.method.rank_window", search)
    rows = np.eye(50, dtype=np.float32)
    with pytest.raises(ValueError, match="2 rows must be kept apart .row 3 is one., but there are 1 batches"):
        B3(batch_size=64, surplus="error").mine(rows, rows, groups=np.where(np.arange(50) % 40 == 3, 1, -1))


def test_dropped_rows_of_a_full_plan_are_replaced_by_those_of_the_short_batch() -> None:
    """With ``last="drop"`` a row that cannot be kept apart is one of those that go anyhow."""
    ids = np.full(100, -1)
    ids[:12] = 1
    columns = conflict_columns(ids, 100)
    found = regroup(np.arange(100), batch_size=9, cluster_size=1, apart=columns, last="drop", surplus="error")
    assert np.diff(found.plan.offsets).tolist() == [9] * 11
    assert len(found.short) == 1
    assert found.short[0] < 12


def test_data_sets_that_no_epoch_sees_are_named(caplog: pytest.LogCaptureFixture) -> None:
    datasets = np.repeat([3, 1, 2], [100, 20, 1])
    foresee(121, batch_size=64, datasets=datasets, last="drop")
    assert "data sets of fewer rows than a batch of 64: 2, of 21 rows in all (row 100 is one)" in caplog.text
    caplog.clear()
    foresee(121, batch_size=64, datasets=datasets)
    assert "data sets of one row, which has no negative: 1, of 1 rows in all (row 120 is one)" in caplog.text
