"""Arrangement against an exhaustive search, and on data where a greedy pass fails in most epochs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from curation.selectors.b3.arrangement import arrange
from curation.selectors.b3.conflicts import conflict_columns, count_together


def fewest_left_out(sizes: list[int], columns: Any) -> int:
    """How many rows no arrangement can place, by trying all: rows one after another, in every batch or in none."""
    ids = [{int(name) for name in row if name >= 0} for row in np.asarray(columns).T]
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    held: list[set[int]] = [set() for _ in sizes]
    room, best = list(sizes), len(ids)

    def place(position: int, out: int) -> None:
        nonlocal best
        if out >= best:
            return
        if position == len(order):
            best = out
            return
        row = order[position]
        tried = set()
        for batch in range(len(sizes)):
            state = (room[batch], frozenset(held[batch]))
            if room[batch] and not held[batch] & ids[row] and state not in tried:
                tried.add(state)
                room[batch] -= 1
                held[batch] |= ids[row]
                place(position + 1, out)
                room[batch] += 1
                held[batch] -= ids[row]
        place(position + 1, out + 1)

    place(0, 0)
    return best


def in_order(sizes: Any, columns: Any) -> Any:
    """The batches of rows that stand in them one after the other; -1 for those beyond the last."""
    over = columns.shape[1] - int(sum(sizes))
    return np.append(np.repeat(np.arange(len(sizes)), sizes), np.full(over, -1)).astype(np.int64)


def check(sizes: Any, columns: Any, found: Any) -> None:
    assert count_together(found.batches, columns) == 0
    assert (np.bincount(found.batches[found.batches >= 0], minlength=len(sizes)) <= sizes).all()
    assert 1 not in np.bincount(found.batches[found.batches >= 0])
    assert (np.flatnonzero(found.batches < 0) == found.surplus).all()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_what_can_be_arranged_is(data: Any) -> None:
    """Rows in up to five batches, by up to three ids each: none is left out that a search of all cases places."""
    sizes = np.array([data.draw(st.integers(2, 4))] * data.draw(st.integers(1, 4)))
    if data.draw(st.booleans()):
        sizes = np.append(sizes, data.draw(st.integers(2, int(sizes[0]))))
    count = int(sizes.sum())
    assume(count <= 14)
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    names = data.draw(st.integers(1, count))
    kind = data.draw(st.sampled_from([1, 2, 3, "across"]))
    if kind == "across":
        first, second = rng.integers(-1, names, (2, count))
        columns = conflict_columns(None, count, across=(first, second))
    else:
        columns = conflict_columns(rng.integers(-1, names, (count, kind)), count)
    assume(columns is not None)
    found = arrange(in_order(sizes, columns), sizes, columns, rng)
    check(sizes, columns, found)
    fewest = fewest_left_out(sizes.tolist(), columns)
    if fewest == 0:
        assert len(found.surplus) == 0
        assert len(arrange(in_order(sizes, columns), sizes, columns, rng, trial=True).surplus) == 0
    elif kind == 1:
        # A batch that one row is left for is given up.
        given_up = len(sizes) - len(set(found.batches[found.batches >= 0]))
        assert len(found.surplus) <= fewest + given_up


def twins(rng: Any, rows: int, share: float, sizes: tuple[int, int]) -> Any:
    """int64[rows, 2]: in each column that share of the rows, in groups of a size."""
    columns = np.full((rows, 2), -1)
    for column, size in enumerate(sizes):
        grouped = rng.permutation(rows)[: int(rows * share) // size * size]
        columns[grouped, column] = np.arange(len(grouped)) // size
    return columns


@pytest.mark.parametrize(
    ("rows", "batch", "groups", "share"),
    [
        (640, 64, (7, 6), 0.6),
        (2000, 64, (26, 26), 0.6),
        (5000, 256, (15, 15), 0.6),
        # The rows fill the batches, and almost every id stands in all full ones: one pass places none of these.
        (1984, 64, (31, 31), 1.0),
    ],
)
def test_two_columns_of_common_ids(rows: int, batch: int, groups: tuple[int, int], share: float) -> None:
    """Grids on which a pass of swaps failed in most epochs."""
    ids = twins(np.random.default_rng(0), rows, share, groups)
    sizes = np.diff(np.append(np.arange(0, rows, batch), rows))
    for epoch in range(10):
        rng = np.random.default_rng((0, epoch))
        columns = conflict_columns(ids[rng.permutation(rows)], rows)
        assert columns is not None
        found = arrange(in_order(sizes, columns), sizes, columns, rng)
        assert len(found.surplus) == 0
        check(sizes, columns, found)


def test_what_does_not_clash_stays() -> None:
    rng = np.random.default_rng(1)
    ids = twins(rng, 2000, 0.3, (3, 2))
    columns = conflict_columns(ids, 2000)
    assert columns is not None
    sizes = np.diff(np.append(np.arange(0, 2000, 64), 2000))
    given_batches = np.repeat(np.arange(len(sizes)), sizes)
    found = arrange(in_order(sizes, columns), sizes, columns, rng)
    clashing = count_together(given_batches, columns)
    # Of two that clash one moves, and one of another batch makes room for it.
    assert 0 < np.count_nonzero(found.batches != given_batches) <= clashing


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 9), st.integers(1, 6))
def test_surplus_is_all_that_is_left_out(seed: int, batches: int, size: int, names: int) -> None:
    rng = np.random.default_rng(seed)
    count = batches * size
    ids = rng.integers(-1, names, count)
    columns = conflict_columns(ids, count)
    if columns is None:
        return
    sizes = np.full(batches, size)
    found = arrange(in_order(sizes, columns), sizes, columns, rng)
    check(sizes, columns, found)
    again = arrange(in_order(sizes, columns), sizes, columns, np.random.default_rng(7))
    same = arrange(in_order(sizes, columns), sizes, columns, np.random.default_rng(7))
    assert (again.batches == same.batches).all()
    met = arrange(in_order(sizes, columns), sizes, columns, rng, allow=True)
    assert len(met.surplus) == 0
    assert (np.bincount(met.batches, minlength=batches) == sizes).all()
    if len(found.surplus) == 0:
        assert count_together(met.batches, columns) == 0


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 4), st.lists(st.integers(2, 20), min_size=1, max_size=5))
def test_rows_that_may_meet_are_all_in_a_batch(seed: int, width: int, sizes: list[int]) -> None:
    """Also where the search ended with other rows waiting than when it had found its best."""
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    columns = conflict_columns(rng.integers(-1, max(2, count // 4), (count, width)), count)
    assume(columns is not None)
    assert columns is not None
    met = arrange(in_order(sizes, columns), np.array(sizes), columns, rng, allow=True)
    assert np.bincount(met.batches, minlength=len(sizes)).tolist() == sizes
    assert len(met.surplus) == 0


def test_rows_that_are_over_fill_what_others_leave_free() -> None:
    """Of 20 rows 16 have places; one of four of an id in three batches gives way to one that was over."""
    ids = np.full(20, -1)
    ids[:5] = 0
    columns = conflict_columns(ids, 20)
    assert columns is not None
    found = arrange(in_order(np.full(4, 4), columns), np.full(4, 4), columns, np.random.default_rng(0))
    assert np.bincount(found.batches[found.batches >= 0]).tolist() == [4] * 4
    assert np.count_nonzero(found.batches[:5] < 0) == 1
    assert len(found.surplus) == 0
