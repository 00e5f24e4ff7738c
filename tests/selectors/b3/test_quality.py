"""plan_quality against loops over batches."""

import numpy as np
import pytest

from curation.gpu.graph import build_graph
from curation.plan import BatchPlan
from curation.selectors.b3.quality import plan_quality, random_plan


def test_figures_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, positives = (rng.normal(size=(97, 7)).astype(np.float32) for _ in range(2))
    ranked = np.array([rng.permutation(97)[:22] for _ in range(97)])
    near, window = ranked[:, :4], np.where(rng.random((97, 18)) < 0.1, -1, ranked[:, 4:])
    graph = build_graph(window, "either")
    plan = BatchPlan.of_size(rng.permutation(97), 10)
    plan = BatchPlan(indices=plan.indices, offsets=plan.offsets, clusters=plan.indices % 5)
    similarities, hard, false = [], 0, 0
    for batch in plan:
        for i in batch:
            others = [j for j in batch if j != i]
            similarities += [float(queries[i] @ positives[j]) for j in others]
            hard += len(set(others) & set(window[i].tolist()))
            false += len(set(others) & set(near[i].tolist()))
    found = plan_quality(plan, queries, positives, window=window, near=near, graph=graph)
    assert found.similarity == pytest.approx(np.mean(similarities), rel=1e-5)
    assert found.window_neighbours == pytest.approx(hard / 97)
    assert found.false_negatives == pytest.approx(false / len(similarities))
    assert found.inside_edges == pytest.approx(graph.inside(np.arange(97) % 5))
    from curation.selectors.b3 import quality

    blocked = quality.total_similarity(plan, quality.Matrix(queries, "q"), quality.Matrix(positives, "p"), rows=25)
    assert blocked / len(similarities) == pytest.approx(found.similarity, rel=1e-9)


def test_a_random_plan_has_the_same_rows_and_sizes() -> None:
    plan = BatchPlan.of_size(np.arange(5, 98), 10)
    other = random_plan(plan, seed=1)
    assert sorted(other.indices.tolist()) == plan.indices.tolist()
    np.testing.assert_array_equal(other.offsets, plan.offsets)
    assert (other.indices != plan.indices).any()
    np.testing.assert_array_equal(other.indices, random_plan(plan, seed=1).indices)
    assert (other.indices != random_plan(plan, seed=2).indices).any()


def test_no_pairs_and_wrong_lengths() -> None:
    rows = np.eye(3, dtype=np.float32)
    ranks = np.full((3, 1), -1)
    found = plan_quality(BatchPlan.of_size(np.arange(3), 1), rows, rows, window=ranks, near=ranks)
    assert np.isnan(found.similarity)
    assert np.isnan(found.inside_edges)
    assert found.window_neighbours == 0
    with pytest.raises(ValueError, match="3, 3, 2 and 3 rows"):
        plan_quality(BatchPlan.of_size(np.arange(3), 3), rows, rows, window=ranks[:2], near=ranks)
