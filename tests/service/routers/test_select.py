"""``/v1/select``: one choice from what is sent along, beside the library's own."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.pair import Pair
from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.zipfit import ZipFit
from curation.service.client import Client, ServiceError

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]


def test_a_draw_of_scores_that_may_be_negative(client: Client) -> None:
    scores = np.array([0.3, -0.01, 0.2, 0.5])
    with pytest.raises(ServiceError, match=r"position 1 is -0\.01: it must be 0 or more"):
        client.acquire(scores, 3)
    for shift in (0.02, "lowest"):
        own = StochasticAcquisition(shift=shift).select(scores, 3, seed=(4,))  # type: ignore[arg-type]
        assert np.array_equal(client.acquire(scores, 3, seed=4, shift=shift).indices, own.indices)


def test_selecting_without_a_session(client: Client, http: httpx.Client) -> None:
    scores = np.random.default_rng(0).random(1000)
    remote = client.acquire(scores, 20, seed=4)
    assert np.array_equal(remote.indices, StochasticAcquisition().select(scores, 20, seed=(4,)).indices)
    spoken = http.post("/v1/select/acquire", json={"scores": scores.tolist(), "k": 20, "seed": 4}).json()
    assert spoken["indices"] == remote.indices.tolist()
    texts = [f"def f{i}(x): return x + {i}" if i % 2 else f"the cat number {i} sat down" for i in range(40)]
    targets = ["def g(y): return y * 2"]
    chosen = client.zipfit(texts, targets, 5)
    own = ZipFit(targets=targets).select(texts, 5)
    assert np.array_equal(chosen.indices, own.indices)
    assert np.array_equal(chosen.scores, own.scores)
    rng = np.random.default_rng(1)
    pair = Pair(rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32))
    better = Pair(pair.a, pair.a)
    assert len(client.jest(pair, better, filter_ratio=0.5, chunks=4, seed=1)) == 20
    assert np.array_equal(client.jest(pair, better, seed=1).indices, client.jest(pair, better, seed=1).indices)
    plan = client.b3(pair.a, pair.b, batch_size=8, cluster_size=4, ranks=(2, 12), seed=3)
    assert sorted(np.concatenate(list(plan)).tolist()) == list(range(40))


BAD_SELECTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("acquire", {"scores": [1.0], "k": 2}, 422, "bad-body"),
    ("acquire", {"scores": [-1.0], "k": 1}, 422, "bad-body"),
    ("acquire", {"scores": [1.0] * 5001, "k": 1}, 413, "too-large"),
    ("acquire", {"scores": [1.0], "k": 1, "kind": "best"}, 422, "bad-body"),
    ("acquire", {"scores": [1.0], "k": 1, "kind": "softmax", "shift": 1}, 422, "bad-body"),
    ("acquire", {"scores": [1.0], "k": 1, "shift": "least"}, 422, "bad-body"),
    ("zipfit", {"texts": [""], "targets": ["a"], "k": 1}, 422, "bad-body"),
    ("zipfit", {"texts": ["a"], "targets": [], "k": 1}, 422, "bad-body"),
    ("jest", {"learner_a": [[1.0]], "learner_b": [[1.0, 2.0]], "criterion": "hard"}, 422, "bad-body"),
    ("jest", {"learner_a": [[1.0], [1.0, 2.0]], "learner_b": [[1.0]], "criterion": "hard"}, 422, "bad-body"),
    ("jest", {}, 422, "bad-body"),
    ("b3", {"queries": [[1.0]], "positives": [[1.0], [2.0]], "batch_size": 4, "cluster_size": 2}, 422, "bad-body"),
    ("b3", {"queries": [], "positives": []}, 422, "bad-body"),
]


@pytest.mark.parametrize(("name", "body", "status", "kind"), BAD_SELECTS)
def test_a_bad_selection_is_refused(
    http: httpx.Client, name: str, body: dict[str, Any], status: int, kind: str, assert_problem: Problem
) -> None:
    assert_problem(http.post(f"/v1/select/{name}", json=body), status, kind)
