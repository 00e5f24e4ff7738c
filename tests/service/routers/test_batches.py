"""``/batches``: as strict as ``/steps``, and no larger an answer than the server allows."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.plan import BatchPlan
from curation.service.client import ARROW, Client, RemoteBatchSampler

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]
REPORT: dict[str, Any] = {"step": 1, "report_ranks": [0], "report_steps": [0], "losses": [[1.0] * 8]}


@pytest.mark.parametrize(
    "wrong",
    [{"losses": [["1.0"] * 8]}, {"losses": [[True] * 8]}, {"wait": "1"}, {"wait": True}, {"ranks": ["0"]}],
    ids=str,
)
def test_text_and_true_are_no_numbers(
    http: httpx.Client, session: str, assert_problem: Problem, wrong: dict[str, Any]
) -> None:
    assert_problem(http.post(f"/v1/sessions/{session}/batches", json=REPORT | wrong), 422, "bad-body")
    assert http.get(f"/v1/sessions/{session}").json()["ranks"] == []


@pytest.mark.parametrize("accept", ["application/json", ARROW])
def test_a_report_that_does_not_count_is_named(client: Client, http: httpx.Client, session: str, accept: str) -> None:
    path, headers = f"/v1/sessions/{session}/batches", {"Accept": accept}
    first = http.post(path, json=REPORT, headers=headers)
    again = http.post(path, json=REPORT, headers=headers)
    other = http.post(path, json=REPORT | {"losses": [[2.0] * 8]}, headers=headers)
    named = b'"ignored":[0]' if accept != ARROW else b"[0]"
    assert [named in answer.content for answer in (first, again, other)] == [False, False, True]
    with pytest.warns(UserWarning, match="other losses of rank 0 for step 0"):
        client.batches(session, 1, reports={0: [(0, np.full(8, 3.0))]})


def test_batches_of_a_plan_are_bounded_by_their_own_rows(
    client: Client, http: httpx.Client, assert_problem: Problem
) -> None:
    rows = 60_000
    plan = BatchPlan.of_size(np.arange(2 * rows), rows)
    session = client.create_session("plan", size=2 * rows, batch_size=1, plan=plan).id
    answer = http.post(f"/v1/sessions/{session}/batches", json={"step": 0, "ranks": [0] * 4096})
    assert_problem(answer, 413, "too-large")
    assert len(client.batches(session, 0)[0][0].indices) == rows
    sampler = RemoteBatchSampler(client, session, rank=0, prefetch=2)
    assert sorted(row for batch in sampler for row in batch) == list(range(2 * rows))
