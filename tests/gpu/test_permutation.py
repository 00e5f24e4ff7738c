import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.permutation import SMALL, Permutation


@pytest.mark.parametrize("size", [1, 2, 97, SMALL, SMALL + 1, 100_003])
def test_every_candidate_stands_once(size: int) -> None:
    order = Permutation(size, (3, 1))[:]
    assert np.array_equal(np.sort(order), np.arange(size))


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(1, 1 << 40),
    seed=st.integers(0, 2**62),
    place=st.floats(0, 1, exclude_max=True),
    n=st.integers(0, 50),
)
def test_a_slice_is_the_same_alone_and_within_a_larger_one(size: int, seed: int, place: float, n: int) -> None:
    order = Permutation(size, (seed, 0))
    start = int(place * size)
    whole = order[start : start + 100]
    assert np.array_equal(order[start + n : start + 2 * n], whole[n : 2 * n])
    assert len(np.unique(whole)) == len(whole)
    assert len(whole) == 0 or 0 <= whole.min() <= whole.max() < size


def test_keys_give_other_orders() -> None:
    first, second = Permutation(10**6, (0, 1))[:], Permutation(10**6, (1, 0))[:]
    assert np.mean(first == second) < 1e-4


def test_a_large_order_looks_random() -> None:
    """Chi-square of where a hundred runs of positions go, and the correlation of neighbours; error rate below 1e-6."""
    size, cells = 10**7, 100
    order = Permutation(size, (7, 7))
    for start in (0, size // 3, size - 20_000):
        counts = np.bincount(order[start : start + 20_000] * cells // size, minlength=cells)
        statistic = float(((counts - 200) ** 2 / 200).sum())
        assert statistic < 99 + 5.5 * np.sqrt(2 * 99)
        part = order[start : start + 20_000].astype(np.float64)
        assert abs(np.corrcoef(part[1:], part[:-1])[0, 1]) < 5.5 / np.sqrt(20_000)


@pytest.mark.parametrize("size", [0, -1, (1 << 62) + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be between"):
        Permutation(size, (0,))


@pytest.mark.parametrize("size", [1, 2, 1000, SMALL, SMALL + 1, 100_003, 10**9 + 7])
def test_position_is_the_inverse(size: int) -> None:
    order = Permutation(size, (5, 2))
    for position in np.random.default_rng(0).integers(0, size, 20).tolist():
        assert order.position(int(order[position : position + 1][0])) == position
    with pytest.raises(ValueError, match="is none of 0 to"):
        order.position(size)


@pytest.mark.parametrize(
    ("size", "key", "start", "order"),
    [
        (10**8, (1, 0), 123_456, [59166032, 18478051, 58938958, 30493889]),
        (70_000, (2, 5), 69_996, [29931, 27088, 28396, 55089]),
    ],
)
def test_orders_stay_what_they_were(size: int, key: tuple[int, int], start: int, order: list[int]) -> None:
    """A session in flight computes its batches anew after an update."""
    assert Permutation(size, key)[start : start + 4].tolist() == order
