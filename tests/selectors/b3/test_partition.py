"""Communities of exact sizes from every partitioner, and how well they keep edges inside."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.graph import Graph, build_graph
from curation.selectors.b3.partition import PARTITIONERS, exact_sizes, partition


def near_on_a_ring(count: int, reach: int) -> Graph:
    steps = np.r_[-reach:0, 1 : reach + 1]
    return build_graph((np.arange(count)[:, None] + steps) % count)


def check_sizes(labels: Any, count: int, size: int) -> None:
    sizes = np.sort(np.bincount(labels))[::-1]
    parts = -(-count // size)
    assert labels.dtype == np.int64
    assert sizes.tolist() == [size] * (parts - 1) + [count - (parts - 1) * size]


@pytest.mark.parametrize("method", sorted(PARTITIONERS))
@pytest.mark.parametrize(("count", "size"), [(640, 32), (651, 32), (651, 4), (70, 64), (9, 2)])
def test_every_community_is_exact_and_one_is_short(method: str, count: int, size: int) -> None:
    graph = near_on_a_ring(count, 3)
    labels = partition(graph, cluster_size=size, method=method, seed=3)
    check_sizes(labels, count, size)
    np.testing.assert_array_equal(labels, partition(graph, cluster_size=size, method=method, seed=3))
    if size == 32:
        shuffled = np.random.default_rng(0).permutation(labels)
        assert graph.inside(labels) > 0.75 > 4 * graph.inside(shuffled)


@pytest.mark.parametrize("method", sorted(PARTITIONERS))
def test_isolated_rows_and_empty_graphs(method: str) -> None:
    rows = np.full((100, 2), -1)
    check_sizes(partition(build_graph(rows), cluster_size=8, method=method), 100, 8)
    rows[:30, 0] = np.arange(30) ^ 1
    graph = build_graph(rows)
    labels = partition(graph, cluster_size=8, method=method)
    check_sizes(labels, 100, 8)
    assert graph.inside(labels) > 0.6
    assert partition(graph, cluster_size=100, method=method).tolist() == [0] * 100
    assert partition(graph, cluster_size=500, method=method).tolist() == [0] * 100
    check_sizes(partition(graph, cluster_size=1, method=method), 100, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12), st.integers(1, 30))
def test_repair_evens_out_any_labels(seed: int, count: int, size: int, names: int) -> None:
    rng = np.random.default_rng(seed)
    graph = build_graph(rng.integers(-1, count, (count, 3)), "either")
    check_sizes(exact_sizes(graph, rng.integers(-1, names, count), size), count, size)


def test_repair_leaves_exact_sizes_alone_and_moves_what_loses_least() -> None:
    # Two cliques of 4 and 5, and a pair: row 8 hangs on the second by one edge, to row 7.
    rows = np.full((11, 4), -1)
    rows[:4, :3] = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    rows[4:8, :3] = [[5, 6, 7], [4, 6, 7], [4, 5, 7], [4, 5, 6]]
    rows[7, 3], rows[8, 0], rows[8, 1] = 8, 7, 9
    rows[9, 0], rows[9, 1], rows[10, 0] = 10, 8, 9
    graph = build_graph(rows)
    given_labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    assert exact_sizes(graph, given_labels, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    good = np.array([2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1])
    assert exact_sizes(graph, good, 4).tolist() == good.tolist()


def test_another_seed_gives_another_partition() -> None:
    graph = near_on_a_ring(2000, 5)
    first, second = (partition(graph, cluster_size=16, seed=seed) for seed in (1, 2))
    assert (first != second).any()


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = near_on_a_ring(20, 2)
    with pytest.raises(ValueError, match="kaminpar, metis, louvain, not 'leiden'"):
        partition(graph, cluster_size=4, method="leiden")
    with pytest.raises(ValueError, match="at least 1"):
        partition(graph, cluster_size=0)
    monkeypatch.setattr("curation.selectors.b3.partition.LOUVAIN_LIMIT", 10)
    with pytest.raises(ValueError, match="take kaminpar"):
        partition(graph, cluster_size=4, method="louvain")
