"""Invariants of a selection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import Selection
from curation.selection import as_positions, check_distinct

POSITIONS = st.lists(st.integers(0, 60), max_size=30)


@settings(deadline=None, max_examples=200)
@given(values=POSITIONS, size=st.none() | st.integers(0, 70), spread=st.sampled_from([1, 10**6, 2**40]))
def test_indices_are_distinct_and_in_range(values: list[int], size: int | None, spread: int) -> None:
    """``spread`` takes the check through its dense and its sparse way."""
    indices = [value * spread for value in values]
    limit = None if size is None else size * spread
    fits = len(set(indices)) == len(indices) and (limit is None or max(indices, default=-1) < limit)
    if fits:
        selection = Selection(indices=np.array(indices, np.int64), size=limit)
        assert selection.indices.tolist() == indices
        assert len(selection) == len(indices)
        assert selection.indices.dtype == np.int64
        assert (selection.weights.dtype, selection.weights.tolist()) == (np.float32, [1.0] * len(indices))
        assert selection.scores is None
    else:
        with pytest.raises(ValueError, match=r"index \d+ (appears more than once|is out of range: there are)"):
            Selection(indices=np.array(indices, np.int64), size=limit)


def test_the_offender_is_named() -> None:
    for indices, size, message in (
        ([3, 1, 3], None, "index 3 appears more than once"),
        ([10**9, 1, 10**9], None, "index 1000000000 appears more than once"),
        ([0, -2], None, "index -2 is negative"),
        ([0, 5], 5, "index 5 is out of range: there are 5 candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            Selection(indices=np.array(indices), size=size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_, np.str_, np.datetime64])
def test_indices_must_be_integers(dtype: type) -> None:
    with pytest.raises(TypeError, match="indices must be integers, not"):
        Selection(indices=np.array([0], np.int64).astype("datetime64[s]" if dtype is np.datetime64 else dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_integers_of_any_width_become_int64(dtype: type) -> None:
    selection = Selection(indices=np.array([2, 0], dtype))
    assert (selection.indices.dtype, selection.indices.tolist()) == (np.int64, [2, 0])


def test_positions_above_the_floats() -> None:
    big = 2**62
    assert Selection(indices=np.array([big, big + 1])).indices.tolist() == [big, big + 1]


def test_unsigned_positions_that_int64_cannot_hold() -> None:
    with pytest.raises(ValueError, match="do not fit int64"):
        Selection(indices=np.array([2**63 + 1], np.uint64))


def test_lengths_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"weights has shape \(1,\), but indices has \(2,\)"):
        Selection(indices=np.array([0, 1]), weights=np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"scores has shape \(2, 1\), but indices has \(2,\)"):
        Selection(indices=np.array([0, 1]), scores=np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"one-dimensional, not of shape \(1, 2\)"):
        Selection(indices=np.array([[0, 1]]))


def test_weights_and_scores_take_their_types() -> None:
    selection = Selection(indices=np.array([4, 2]), weights=np.array([2, 1]), scores=np.array([1, 0], np.float32))
    assert (selection.weights.dtype, selection.weights.tolist()) == (np.float32, [2, 1])
    assert selection.scores is not None
    assert (selection.scores.dtype, selection.scores.tolist()) == (np.float64, [1, 0])


def test_int64_positions_are_not_copied() -> None:
    indices = np.arange(5)
    assert as_positions(indices, "indices") is indices
    assert as_positions([], "indices").dtype == np.int64


def test_a_check_of_nothing() -> None:
    check_distinct(np.empty(0, np.int64), 0)
    assert len(Selection(indices=np.empty(0, np.int64), size=0)) == 0
