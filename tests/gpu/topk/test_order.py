"""Ranks: by value, equal values at random, alike on every path."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curation.gpu.topk import descending_ranks, gumbel_topk
from curation.gpu.topk import order as module
from curation.gpu.topk.gumbel import noise_seeds

ALPHA = 1e-4


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "uint64", "bool"])
@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 3.0, 2.0**53, 2.0**62, np.inf]), max_size=40),
    step=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_ranks_follow_values_on_either_path(kind: str, values: list[float], step: int, seed: int) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        array = np.array(values, np.float64).clip(max=None if "f" in kind else 2.0**62).astype(kind)
        array[::2] += np.array(step, array.dtype)
    ranks = descending_ranks(array, seed=seed)
    assert sorted(ranks.tolist()) == list(range(1, len(array) + 1))
    assert np.all((ranks[:, None] < ranks[None, :])[array[:, None] > array[None, :]])
    assert descending_ranks(torch.from_numpy(array), seed=seed).tolist() == ranks.tolist()
    on_device = module._device_order(torch.from_numpy(array), noise_seeds(seed))
    assert (np.argsort(on_device.numpy()) + 1).tolist() == ranks.tolist()


def shares(ranks: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How often each of the equal values has each of their ranks."""
    tied = np.flatnonzero(values == 2)
    return np.array([np.bincount(ranks[:, i], minlength=8)[2:7] for i in tied])


def test_equal_values_have_each_of_their_ranks_equally_often() -> None:
    """A chi-square test, error rate 1e-4."""
    values = np.array([2, 1, 2, 5, 2, 2, 2.0])
    ranks = np.array([descending_ranks(values, seed=(seed, 1)) for seed in range(2_000)])
    assert (ranks[:, 3] == 1).all()
    assert (ranks[:, 1] == 7).all()
    assert stats.chisquare(shares(ranks, values).ravel()).pvalue > ALPHA


def test_the_order_of_equal_values_is_unrelated_to_the_noise_and_to_the_position() -> None:
    """Two correlations, each beyond its limit with a chance of 1e-4."""
    n = 100_000
    ranks = descending_ranks(np.zeros(n), seed=3)
    limit = stats.norm.isf(ALPHA / 2) / math.sqrt(n)
    assert abs(np.corrcoef(ranks, np.arange(n))[0, 1]) < limit
    by_noise = np.argsort(gumbel_topk(np.zeros(n), n, seed=3)[0])
    assert abs(np.corrcoef(ranks, by_noise)[0, 1]) < limit
