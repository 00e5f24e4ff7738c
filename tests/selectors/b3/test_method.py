"""B3 against a plain rank window, the invariants of its plans, and what public code gets wrong."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.plan import BatchPlan
from curation.selectors.b3 import B3, pair_ids, rank_window, text_ids


def pairs(count: int, width: int = 16, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, count // 20), width))
    base = centres[rng.integers(0, len(centres), count)] + 0.5 * rng.normal(size=(count, width))
    queries, positives = (base + 0.3 * rng.normal(size=base.shape) for _ in range(2))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (queries, positives))  # type: ignore[return-value]


def check_whole(plan: BatchPlan, count: int) -> None:
    assert sorted(plan.indices.tolist()) == list(range(count))


def check_apart(plan: BatchPlan, ids: Any) -> None:
    for batch in plan:
        mine = ids[batch]
        mine = mine[mine >= 0]
        assert len(set(mine.tolist())) == len(mine)


def test_the_window_is_the_plain_one() -> None:
    queries, positives = pairs(120)
    groups = np.arange(120) // 3
    scores = (queries.astype(np.float64) @ positives.astype(np.float64).T).astype(np.float32)
    found = rank_window(
        queries, positives, ranks=(4, 20), apart=groups[None], similarity_ceiling=0.9, positive_margin=0.95
    )
    for i in range(120):
        others = sorted((j for j in range(120) if groups[j] != groups[i]), key=lambda j: (-scores[i, j], j))
        limit = min(0.9, 0.95 * scores[i, i])
        assert found.near[i].tolist() == others[:4]
        assert found.window[i].tolist() == [j if scores[i, j] <= limit else -1 for j in others[4:20]]


@pytest.mark.parametrize("edges", ["mutual", "either"])
@pytest.mark.parametrize("partitioner", ["kaminpar", "metis", "louvain"])
def test_batches_are_whole_communities_of_hard_negatives(edges: Any, partitioner: Any) -> None:
    queries, positives = pairs(512)
    method = B3(batch_size=64, cluster_size=16, ranks=(3, 33), edges=edges, partitioner=partitioner)
    found = method.mine(queries, positives)
    plan = method.batches(found, seed=1, epoch=2)
    check_whole(plan, 512)
    assert np.diff(plan.offsets).tolist() == [64] * 8
    assert plan.clusters is not None
    for batch in range(8):
        labels = plan.clusters[plan.offsets[batch] : plan.offsets[batch + 1]]
        assert sorted(Counter(labels.tolist()).values()) == [16] * 4
    assert found.graph.inside(found.clusters) > 0.2
    assert plan.metadata["engine"] == "torch-cpu"
    assert plan.metadata["partitioner"] == partitioner
    assert plan.metadata["deterministic"] == "true"


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    queries, positives = pairs(300)
    method = B3(batch_size=40, cluster_size=8, ranks=(2, 30), negatives=3)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same = (method.plan(queries, positives, seed=5, epoch=1) for _ in range(2))
    np.testing.assert_array_equal(one.indices, same.indices)
    np.testing.assert_array_equal(one.negatives, same.negatives)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    as_tensor = method.plan(torch.from_numpy(queries), torch.from_numpy(positives), seed=5, epoch=1)
    np.testing.assert_array_equal(one.indices, as_tensor.indices)
    found = method.mine(queries, positives, seed=5)
    epochs = [method.batches(found, seed=5, epoch=epoch) for epoch in range(3)]
    np.testing.assert_array_equal(epochs[1].indices, one.indices)
    assert (epochs[0].indices != epochs[1].indices).any()
    assert (
        epochs[0].negatives[np.argsort(epochs[0].indices)] != epochs[2].negatives[np.argsort(epochs[2].indices)]
    ).any()  # type: ignore[index]
    clusters = [plan.clusters[np.argsort(plan.indices)] for plan in epochs]  # type: ignore[index]
    np.testing.assert_array_equal(clusters[0], clusters[1])
    assert (method.batches(found, seed=0, epoch=1).indices != method.batches(found, seed=1, epoch=0).indices).any()


def test_rows_that_must_not_meet_never_do() -> None:
    queries, positives = pairs(400)
    rng = np.random.default_rng(1)
    groups = np.where(rng.random(400) < 0.2, -1, rng.integers(0, 120, 400))
    texts = rng.integers(0, 90, (400, 2))
    method = B3(batch_size=16, cluster_size=8, ranks=(2, 40), negatives=4)
    found = method.mine(queries, positives, groups=groups, duplicates=texts)
    for epoch in range(3):
        plan = method.batches(found, epoch=epoch)
        check_whole(plan, 400)
        for ids in (groups, texts[:, 0], texts[:, 1]):
            check_apart(plan, ids)
            rows = np.arange(400)
            window = found.ranking.window
            banned = (ids[window] == ids[rows][:, None]) & (ids[rows] >= 0)[:, None] & (window >= 0)
            assert not banned.any()
            theirs = plan.negatives
            assert theirs is not None
            assert not ((ids[theirs] == ids[plan.indices][:, None]) & (theirs >= 0)
                        & (ids[plan.indices] >= 0)[:, None]).any()  # fmt: skip


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([2, 4]), st.booleans())
def test_no_query_meets_itself_as_a_positive(seed: int, length: int, own: bool) -> None:
    """Chained pairs: a row's positive is the next one's query. Neither batches nor ranks nor negatives join the two."""
    rng = np.random.default_rng(seed)
    queries, positives = pairs(200, seed=seed)
    chain, place = np.divmod(rng.permutation(200), length)
    texts = np.stack([chain * 100 + place, chain * 100 + place + 1])
    if own:
        texts[1, :20] = texts[0, :20]
    first, second = pair_ids(*([f"text {text}" for text in side.tolist()] for side in texts))
    method = B3(batch_size=16, cluster_size=8, ranks=(2, 60), negatives=4, surplus="error")
    found = method.mine(queries, positives, across=(first, second))
    clash = texts[0][:, None] == texts[1][None]
    clash |= clash.T
    np.fill_diagonal(clash, False)
    window = found.ranking.window
    assert not (np.take_along_axis(clash, np.maximum(window, 0), 1) & (window >= 0)).any()
    for epoch in range(2):
        plan = method.batches(found, epoch=epoch)
        check_whole(plan, 200)
        assert not any(clash[np.ix_(batch, batch)].any() for batch in plan)
        assert plan.negatives is not None
        theirs = np.take_along_axis(clash[plan.indices], np.maximum(plan.negatives, 0), 1)
        assert not (theirs & (plan.negatives >= 0)).any()
        assert plan.metadata["surplus_rows"] == "0"


def test_a_plan_says_how_many_rows_are_out() -> None:
    queries, positives = pairs(50)
    ids = np.full(50, -1)
    ids[[3, 30]] = 1
    for surplus, expected in (("drop", ("1", "0")), ("allow", ("0", "2"))):
        method = B3(batch_size=64, cluster_size=4, ranks=(1, 9), surplus=surplus)  # type: ignore[arg-type]
        plan = method.plan(queries, positives, duplicates=ids)
        assert (plan.metadata["surplus_rows"], plan.metadata["together_rows"]) == expected
        assert len(plan.indices) == 50 - int(expected[0])


def test_data_sets_share_no_batch_and_no_edge() -> None:
    queries, positives = pairs(300)
    datasets = np.random.default_rng(3).integers(5, 8, 300)
    method = B3(batch_size=32, cluster_size=8, ranks=(2, 30))
    found = method.mine(queries, positives, datasets=datasets)
    sources = np.repeat(np.arange(300), np.diff(found.graph.starts))
    assert found.graph.edges > 0
    assert (datasets[sources] == datasets[found.graph.neighbours]).all()
    plan = method.batches(found)
    check_whole(plan, 300)
    assert all(len(set(datasets[batch].tolist())) == 1 for batch in plan)
    assert all(len(set(datasets[found.clusters == c].tolist())) == 1 for c in range(found.clusters.max() + 1))


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0]))
def test_rows_kept_apart_stay_in_communities_and_negatives_of_their_data_set(seed: int, repulsion: float) -> None:
    """Also where a row that has to leave its community finds none along its edges."""
    queries, positives = pairs(60, seed=seed)
    rng = np.random.default_rng(seed)
    datasets = rng.integers(0, 3, 60)
    method = B3(batch_size=9, cluster_size=3, ranks=(1, 9), negatives=2, repulsion=repulsion)
    found = method.mine(queries, positives, datasets=datasets, groups=rng.integers(-1, 4, 60), seed=seed)
    for community in range(found.clusters.max() + 1):
        assert len(set(datasets[found.clusters == community])) == 1
    plan = method.batches(found, seed=seed)
    assert plan.negatives is not None
    rows, ranks = np.nonzero(plan.negatives >= 0)
    assert (datasets[plan.indices[rows]] == datasets[plan.negatives[rows, ranks]]).all()


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "true"), ({"threads": 2}, "false"), ({"engine": "faiss-hnsw"}, "false")]
)
def test_what_differs_from_call_to_call_says_so(options: dict[str, Any], expected: str) -> None:
    queries, positives = pairs(60)
    plan = B3(batch_size=8, cluster_size=4, ranks=(1, 9), **options).plan(queries, positives)
    assert plan.metadata["deterministic"] == expected


def test_few_rows_still_make_batches(caplog: pytest.LogCaptureFixture) -> None:
    queries, positives = pairs(20)
    with caplog.at_level("WARNING"):
        plan = B3(batch_size=8, cluster_size=4).plan(queries, positives)
    check_whole(plan, 20)
    assert "no edges" in caplog.text
    assert "20 rows" in caplog.text
    # One row has no negative.
    assert len(B3(batch_size=32, cluster_size=32, ranks=(0, 2)).plan(queries[:1], positives[:1])) == 0


def test_text_ids_are_equal_where_texts_are() -> None:
    assert text_ids(["b", "a", "b", ""]).tolist() == [0, 1, 0, 2]
    assert [ids.tolist() for ids in pair_ids(["b", "a"], ["c", "b"])] == [[0, 1], [2, 0]]
    with pytest.raises(ValueError, match="2 queries but 1 positives"):
        pair_ids(["b", "a"], ["c"])


def test_mistakes_are_named() -> None:
    for message, options in (
        ("multiple of cluster_size, not 60 with 32", {"batch_size": 60}),
        ("0 ≤ first < end", {"ranks": (30, 30)}),
        ("edges must be one of mutual, either", {"edges": "directed"}),
        ("partitioner must be one of kaminpar", {"partitioner": "leiden"}),
        ("last must be one of keep, drop", {"last": "pad"}),
        ("surplus must be one of error, drop, allow", {"surplus": "keep"}),
        ("engine must be one of auto", {"engine": "annoy"}),
        ("threads must be at least 1", {"threads": 0}),
        ("similarity_ceiling must be a finite number", {"similarity_ceiling": float("nan")}),
        ("positive_margin must be above 0", {"positive_margin": 0.9, "metric": "l2"}),
    ):
        with pytest.raises(ValueError, match=message):
            B3(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no rows"):
        B3(batch_size=4, cluster_size=2).plan(*np.empty((2, 0, 16), np.float32))
    queries, positives = pairs(30)
    method = B3(batch_size=8, cluster_size=4, ranks=(0, 5))
    with pytest.raises(ValueError, match="30 queries but 29 positives"):
        method.plan(queries, positives[:29])
    with pytest.raises(ValueError, match=r"groups must be integers of shape \[30\]"):
        method.plan(queries, positives, groups=np.zeros(29, np.int64))
