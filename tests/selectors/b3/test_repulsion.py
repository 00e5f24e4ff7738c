"""Swaps of near pairs out of communities: what they never worsen, and what they bring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.graph import build_graph
from curation.selectors.b3 import B3, plan_quality
from curation.selectors.b3.repulsion import repel, signed_graph


def weight_inside(clusters: np.ndarray, window: np.ndarray, near: np.ndarray, repulsion: float) -> float:
    """Mutual edges and near pairs of either side, counted one by one."""
    total = 0.0
    for i in range(len(clusters)):
        for j in np.flatnonzero(clusters == clusters[i]).tolist():
            total += 2.0 * (j in window[i] and i in window[j]) * (i != j)
            total -= repulsion * (int(j in near[i]) + int(i in near[j])) * (i != j)
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 16), st.integers(0, 4))
def test_swaps_keep_sizes_and_data_sets_and_lower_nothing(seed: int, size: int, quarters: int, first: int) -> None:
    rng = np.random.default_rng(seed)
    # Quarters make exact sums. Two data sets of 24 rows, whose ranks stay within them.
    ranked = np.concatenate([[24 * part + rng.permutation(24) for _ in range(24)] for part in range(2)])
    near, window, repulsion = ranked[:, :first], ranked[:, first:14], quarters / 4
    clusters = np.concatenate([np.arange(24) // size, np.arange(24) // size + -(-24 // size)])
    found = repel(clusters, near, build_graph(window), repulsion)
    np.testing.assert_array_equal(np.bincount(found), np.bincount(clusters))
    assert (clusters[:24].max() < found[24:]).all()
    before, after = (weight_inside(each, window, near, repulsion) for each in (clusters, found))
    # A swap is made where the weight grows, so an equal one has none.
    assert after > before or (after == before and (found == clusters).all())
    np.testing.assert_array_equal(repel(clusters, near, build_graph(window), repulsion), found)


def test_edges_and_near_pairs_stand_in_one_graph() -> None:
    edges, near = build_graph(np.array([[1], [0], [-1]])), build_graph(np.array([[2], [-1], [1]]), "either")
    starts, neighbours, weights = signed_graph(edges, near, 0.5)
    rows = np.repeat(np.arange(3), np.diff(starts))
    found = sorted(zip(rows.tolist(), neighbours.tolist(), weights.tolist(), strict=True))
    assert found == [(0, 1, 2.0), (0, 2, -0.5), (1, 0, 2.0), (1, 2, -0.5), (2, 0, -0.5), (2, 1, -0.5)]


def test_fewer_near_pairs_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(60, 24))[rng.integers(0, 60, 2000)] + 0.7 * rng.normal(size=(2000, 24))
    queries, positives = ((topics + 0.4 * rng.normal(size=topics.shape)).astype(np.float32) for _ in range(2))
    measured = []
    for repulsion in (0, 1):
        method = B3(batch_size=64, cluster_size=32, ranks=(20, 100), repulsion=repulsion)
        found = method.mine(queries, positives)
        measured.append(
            plan_quality(
                method.batches(found), queries, positives, window=found.ranking.window, near=found.ranking.near
            )
        )
    assert measured[1].false_negatives < 0.7 * measured[0].false_negatives
    assert measured[1].window_neighbours > 0.7 * measured[0].window_neighbours


def test_repulsion_is_a_number() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="repulsion must be a finite number"):
            B3(repulsion=wrong)
