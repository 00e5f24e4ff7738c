"""Explicit negatives against a plain draw: whom a row may be given, and in which proportions."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selectors.b3 import B3
from curation.selectors.b3.limits import margin_limit, similarity_limits
from curation.selectors.b3.negatives import _pair_uniform, hard_negatives


def plain_negatives(
    clusters: Any, window: Any, near: Any, count: int, seed: int, epoch: int, allowed: Any
) -> list[list[int]]:
    """Every candidate's weight and its time in the race, row by row; ``allowed`` is bool[N, N]."""
    key = np.random.default_rng((seed, epoch, 3)).integers(0, 2**63, dtype=np.uint64)
    out = []
    for row in range(len(clusters)):
        members = np.flatnonzero(clusters == clusters[row])
        weights = Counter(window[members].ravel().tolist())
        weights.subtract(2 * near[members].ravel().tolist())
        times = {
            j: -np.log(_pair_uniform(key, row, j)) / weight
            for j, weight in weights.items()
            if j >= 0 and weight > 0 and clusters[j] != clusters[row] and j not in near[row] and allowed[row, j]
        }
        drawn = sorted(times, key=lambda j: times[j])[:count]
        out.append(drawn + [-1] * (count - len(drawn)))
    return out


def similarities(queries: Any, positives: Any, metric: str) -> Any:
    left, right = queries.astype(np.float64), positives.astype(np.float64)
    if metric == "ip":
        return (left @ right.T).astype(np.float32)
    return (-((left[:, None] - right[None]) ** 2).sum(2)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_draws_are_the_plain_ones(data: Any) -> None:
    seed, count = data.draw(st.integers(0, 10_000)), data.draw(st.integers(4, 60))
    rng = np.random.default_rng(seed)
    # Small whole numbers: similarities are exact, and often equal to a limit.
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    queries, positives = (rng.integers(-2, 3, (count, 9)).astype(dtype) for _ in range(2))
    ranked = np.array([rng.permutation(count) for _ in range(count)])
    cut = data.draw(st.integers(0, 4))
    near, window = ranked[:, :cut], np.where(rng.random((count, count - cut)) < 0.2, -1, ranked[:, cut:])
    clusters = rng.integers(0, 1 + count // 5, count)
    apart, labels = rng.integers(-1, 2 * count, (3, count)), rng.integers(-1, 9, count)
    metric = data.draw(st.sampled_from(["ip", "l2"]))
    ceiling = data.draw(st.sampled_from([None, -8.0, 2.0, 5.0]))
    margin = data.draw(st.sampled_from([None, 0.5, 1.0])) if metric == "ip" else None

    scores = similarities(queries, positives, metric)
    own = np.diag(scores)
    allowed = np.ones((count, count), bool)
    allowed &= (labels[:, None] != labels) | (labels < 0)
    for mine in apart:
        for theirs in apart:
            allowed &= (mine[:, None] != theirs) | (theirs < 0)
    if ceiling is not None:
        allowed &= scores <= ceiling
    if margin is not None:
        allowed &= scores <= (own - (1 - margin) * abs(own))[:, None]
    limits = similarity_limits(
        queries, positives, metric=metric, similarity_ceiling=ceiling, positive_margin=margin, block=7
    )
    found = hard_negatives(
        clusters, window, near, count=3, seed=seed, epoch=2, apart=apart, labels=labels, limits=limits
    )
    assert found.tolist() == plain_negatives(clusters, window, near, 3, seed, 2, allowed)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_no_negative_is_a_suspected_false_one(data: Any) -> None:
    seed, size = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([4, 8]))
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(6, 8))[rng.integers(0, 6, 120)] + 0.6 * rng.normal(size=(120, 8))
    queries, positives = ((base + 0.3 * rng.normal(size=base.shape)).astype(np.float32) for _ in range(2))
    first = data.draw(st.integers(0, 20))
    ceiling = data.draw(st.sampled_from([None, 2.0, 6.0]))
    margin = data.draw(st.sampled_from([None, 0.6, 0.95]))
    method = B3(
        batch_size=2 * size, cluster_size=size, ranks=(first, first + 30), negatives=4, edges="either",
        similarity_ceiling=ceiling, positive_margin=margin,
    )  # fmt: skip
    found = method.mine(queries, positives, seed=seed)
    plan = method.batches(found, seed=seed, epoch=data.draw(st.integers(0, 3)))
    assert plan.negatives is not None
    row, place = np.nonzero(plan.negatives >= 0)
    rows, drawn = plan.indices[row], plan.negatives[row, place]
    assert not (found.ranking.near[rows] == drawn[:, None]).any()
    scores = np.einsum("nd,nd->n", queries[rows], positives[drawn])
    own = np.einsum("nd,nd->n", queries[rows], positives[rows])
    if ceiling is not None:
        assert (scores <= ceiling + 1e-5).all()
    if margin is not None:
        assert (scores <= own - (1 - margin) * abs(own) + 1e-5).all()


def test_draws_follow_the_windows_of_the_community() -> None:
    # Community {0, 1, 2}: 3 stands in three windows, 4 in two, 5 in one, 6 in three but once in a top p.
    clusters = np.array([0, 0, 0, 1, 1, 1, 1])
    window = np.array([[3, 4, 5, 6], [3, 4, 6, 1], [3, 6, 2, -1], *[[-1] * 4] * 4])
    near = np.array([[6], [-1], [-1], *[[-1]] * 4])
    # Row 1 may not have 3, which is nearer to it than its limit; so its others keep their proportions.
    queries, positives = np.zeros((7, 1), np.float32), np.ones((7, 1), np.float32)
    queries[1], positives[3] = 1, 9
    limits = similarity_limits(queries, positives, similarity_ceiling=5.0)
    weights = [{3: 3, 4: 2, 5: 1}, {4: 2, 5: 1, 6: 1}, {3: 3, 4: 2, 5: 1, 6: 1}]
    first, second = Counter[tuple[int, int]](), Counter[tuple[int, int, int]]()
    draws = 4000
    for seed in range(draws):
        drawn = hard_negatives(clusters, window, near, count=5, seed=seed, limits=limits)
        for row, known in enumerate(weights):
            assert sorted(drawn[row].tolist()) == [-1] * (5 - len(known)) + sorted(known)
            first[row, int(drawn[row, 0])] += 1
            second[row, int(drawn[row, 0]), int(drawn[row, 1])] += 1
        assert (drawn[3:] == -1).all()
    chi, chi2 = [0.0] * 3, [0.0] * 3
    for row, known in enumerate(weights):
        total = sum(known.values())
        for a, wa in known.items():
            expected = draws * wa / total
            chi[row] += (first[row, a] - expected) ** 2 / expected
            for b, wb in known.items():
                if a != b:
                    expected = draws * wa / total * wb / (total - wa)
                    chi2[row] += (second[row, a, b] - expected) ** 2 / expected
    # Of 2, 2, 3 degrees of freedom, and of 5, 5, 11: a false alarm has a chance below 1e-5 each.
    assert max(chi) < 26
    assert max(chi2) < 43


def test_limits_that_exclude_nothing_change_nothing() -> None:
    rng = np.random.default_rng(4)
    queries, positives = (rng.normal(size=(300, 8)).astype(np.float32) for _ in range(2))
    options: dict[str, Any] = {"batch_size": 16, "cluster_size": 8, "ranks": (3, 30), "negatives": 3}
    free, bound = (B3(**options, similarity_ceiling=ceiling).plan(queries, positives) for ceiling in (None, 1e9))
    np.testing.assert_array_equal(free.negatives, bound.negatives)


def test_a_margin_lies_below_a_similarity_of_either_sign() -> None:
    own = np.array([0.8, 0.0, -0.2], np.float32)
    np.testing.assert_allclose(margin_limit(own, 0.9), [0.72, 0.0, -0.22], rtol=1e-6)
    np.testing.assert_array_equal(margin_limit(own, 1.0), own)
    np.testing.assert_allclose(margin_limit(own, 1.2), [0.96, 0.0, -0.16], rtol=1e-6)


def test_embeddings_of_other_widths_have_no_limits() -> None:
    with pytest.raises(ValueError, match="queries have 3 columns, but positives have 2"):
        similarity_limits(np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), similarity_ceiling=1.0)
