"""build_graph against sets of tuples."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.graph import build_graph


def plain(rows: Any, edges: str) -> dict[tuple[int, int], int]:
    named = {(i, int(j)) for i, row in enumerate(rows) for j in row if j >= 0 and j != i}
    out = {}
    for i, j in named:
        both = (j, i) in named
        if both or edges == "either":
            out[i, j] = out[j, i] = 2 if both else 1
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 12), st.sampled_from(["mutual", "either"]))
def test_edges_and_weights_are_those_of_the_sets(seed: int, count: int, width: int, edges: str) -> None:
    # Own row, repeats and -1 included.
    rows = np.random.default_rng(seed).integers(-1, count, (count, width))
    graph = build_graph(rows, edges)
    found = {}
    for i in range(count):
        mine = graph.neighbours[graph.starts[i] : graph.starts[i + 1]].tolist()
        assert mine == sorted(set(mine))
        weights = graph.weights[graph.starts[i] : graph.starts[i + 1]].tolist()
        found |= {(i, j): weight for j, weight in zip(mine, weights, strict=True)}
    assert found == plain(rows, edges)
    assert graph.edges == len(found) // 2


def test_on_threads_the_graph_is_the_same() -> None:
    rows = np.random.default_rng(0).integers(-1, 2000, (2000, 30)).astype(np.int32)
    for edges in ("mutual", "either"):
        graph, expected = build_graph(rows, edges), plain(rows, edges)
        sources = np.repeat(np.arange(2000), np.diff(graph.starts))
        columns = (sources.tolist(), graph.neighbours.tolist(), graph.weights.tolist())
        assert {(i, j): w for i, j, w in zip(*columns, strict=True)} == expected


def test_networkx_and_the_share_inside() -> None:
    rows = np.array([[1, 2], [0, 3], [-1, 0], [1, -1], [0, 1]])
    graph = build_graph(rows, "either")
    view = graph.to_networkx()
    assert set(view.nodes) == set(range(5))
    assert {(a, b): w for a, b, w in view.edges(data="weight")} == {
        (0, 1): 2, (0, 2): 2, (0, 4): 1, (1, 3): 2, (1, 4): 1,
    }  # fmt: skip
    assert graph.inside(np.array([0, 0, 0, 1, 1])) == pytest.approx(4 / 8)
    assert build_graph(np.full((3, 2), -1)).inside(np.zeros(3, np.int64)) == 0.0


def test_memory_is_a_few_bytes_an_edge() -> None:
    # The public script's adjacency lists and set of tuples take over 200 bytes for each.
    count, width = 20_000, 50
    rows = ((np.arange(count)[:, None] + np.r_[-25:0, 1:26]) % count).astype(np.int32)
    build_graph(rows[:10] % 10)
    tracemalloc.start()
    graph = build_graph(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(graph.neighbours) == count * width
    assert peak < 25 * count * width


def test_a_tensor_is_worked_on_where_it_is() -> None:
    rows = np.random.default_rng(0).integers(-1, 60, (60, 9))
    for edges in ("mutual", "either"):
        compiled, sorted_ = build_graph(rows, edges), build_graph(torch.from_numpy(rows), edges)
        for name in ("starts", "neighbours", "weights"):
            ours, theirs = getattr(sorted_, name), getattr(compiled, name)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="edges must be one of mutual, either"):
        build_graph(np.zeros((2, 2), np.int64), "both")
    with pytest.raises(ValueError, match="shape"):
        build_graph(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"rows 0\.\.1"):
        build_graph(np.array([[2], [0]]))
    with pytest.raises(TypeError, match="integers"):
        build_graph(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 nodes"):
        build_graph(np.array([[1], [0]])).inside(np.zeros(3, np.int64))
