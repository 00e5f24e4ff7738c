"""Ranks by data set, shares and labels against a plain ranking, and a plan of a classification set."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selectors.b3 import B3, rank_window
from curation.selectors.b3.ranks import check_ranks, rank_bounds

PAIRS = st.one_of(
    st.tuples(st.integers(0, 6), st.integers(7, 20)),
    st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.lists(PAIRS, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_windows_are_the_plain_ones(seed: int, pairs: list[Any], labelled: bool, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 60))
    queries, positives = (rng.integers(-2, 3, (count, 5)).astype(np.float32) for _ in range(2))
    # Names of data sets that are no positions.
    datasets = rng.integers(0, len(pairs), count) * 10 - 7
    ranks = {number * 10 - 7: pair for number, pair in enumerate(pairs)}
    labels = rng.integers(-1, 4, count) if labelled else None
    groups = rng.integers(-1, count, count) if grouped else None
    method = B3(batch_size=4, cluster_size=2, ranks=ranks)
    assert method.ranks == ranks
    found = method.mine(queries, positives, datasets=datasets, labels=labels, groups=groups).ranking
    scores = queries @ positives.T
    for i in range(count):
        among = datasets == datasets[i]
        among[i] = False
        if labels is not None and labels[i] >= 0:
            among &= labels != labels[i]
        first, end = ranks[int(datasets[i])]
        if isinstance(end, float):
            first, end = (round(share * int(among.sum())) for share in (first, end))
        if groups is not None and groups[i] >= 0:
            among &= groups != groups[i]
        ranked = sorted(np.flatnonzero(among).tolist(), key=lambda j: (-scores[i, j], j))
        assert [j for j in found.near[i].tolist() if j >= 0] == ranked[:first]
        assert [j for j in found.window[i].tolist() if j >= 0] == ranked[first:end]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(0, 3))
def test_a_classification_set_is_ranked_among_other_labels(seed: int, classes: int, epoch: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 300)
    texts = rng.normal(size=(classes, 6)).astype(np.float32)
    queries = texts[labels] + 0.5 * rng.normal(size=(300, 6)).astype(np.float32)
    positives = texts[labels] + 1e-3 * rng.normal(size=(300, 6)).astype(np.float32)
    method = B3(batch_size=16, cluster_size=4, ranks=(0.0, 0.3), negatives=3)
    found = method.mine(queries, positives, labels=labels, seed=seed)
    window = found.ranking.window
    assert (np.count_nonzero(window >= 0, axis=1) == np.rint(0.3 * (labels[:, None] != labels).sum(1))).all()
    assert (labels[window] != labels[:, None])[window >= 0].all()
    plan = method.batches(found, seed=seed, epoch=epoch)
    assert sorted(plan.indices.tolist()) == list(range(300))
    assert plan.negatives is not None
    mine, theirs = labels[plan.indices][:, None], labels[plan.negatives]
    assert (mine != theirs)[plan.negatives >= 0].all()
    assert (plan.negatives >= 0).any()
    # Rows of one label may share a batch; as groups they cannot be kept apart.
    with pytest.raises(ValueError, match="must be kept apart"):
        replace(method, surplus="error").plan(queries, positives, groups=labels)


def test_shares_of_few_rows_may_keep_none() -> None:
    rows = np.eye(3, dtype=np.float32)
    found = rank_window(rows, rows, ranks=(0.0, 0.1), datasets=np.array([4, 4, 5]))
    assert (found.window == -1).all()
    assert found.metadata == {}


def test_shares_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="shares of 100000 rows keep 3000000000 of them.*give whole numbers"):
        rank_bounds((0.0, 0.3), 100_000)
    assert rank_bounds((30, 130), 100_000).max() == 130


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0.2, 0.1), "shares must be .* not .0.2, 0.1"),
        ((0, 1.5), "end ≤ 1"),
        ((0.0, float("nan")), "end ≤ 1"),
        ({}, "must name a data set"),
        ({0: (5, 5)}, "0 ≤ first < end, not .5, 5"),
        ((1, 2, 3), "two numbers"),
        ("ab", "two numbers"),
    ],
)
def test_ranks_that_are_none_are_named(ranks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        B3(ranks=ranks)


def test_ranks_and_data_sets_must_fit() -> None:
    rows = np.eye(4, dtype=np.float32)
    method = B3(batch_size=2, cluster_size=1, ranks={3: (0, 2)})
    with pytest.raises(ValueError, match="ranks by data set need datasets"):
        method.plan(rows, rows)
    with pytest.raises(ValueError, match="a pair to data sets 3, but none to 9"):
        method.plan(rows, rows, datasets=np.array([3, 3, 9, 9]))
    assert check_ranks([np.int64(1), 5]) == (1, 5)
    assert check_ranks([0, 0.5]) == (0.0, 0.5)
