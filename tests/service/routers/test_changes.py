"""Sessions that are created, rewound, closed or deleted more than once, and changed while they run."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.plan import BatchPlan
from curation.service.client import Client, ServiceError

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]
ONES = np.ones(5, np.float32)


class Losing(httpx.HTTPTransport):
    """A network that loses the first answer to each request of a kind, after it was carried out."""

    def __init__(self, method: str, ends: str = "") -> None:
        super().__init__()
        self._lost, self._place = False, (method, ends)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        method, ends = self._place
        if not self._lost and request.method == method and request.url.path.endswith(ends):
            self._lost = True
            answer.read()
            raise httpx.ReadError("lost")
        return answer


def test_another_plan_under_the_same_id_is_refused(client: Client) -> None:
    plans = [BatchPlan.of_size(np.random.default_rng(seed).permutation(20), 5) for seed in range(2)]
    options: dict[str, Any] = {"size": 20, "batch_size": 5, "id": "planned"}
    first = client.create_session("plan", plan=plans[0], **options)
    again = client.create_session("plan", plan=plans[0], **options)
    assert (first.generation, first.raw["digest"]) == (again.generation, again.raw["digest"])
    with pytest.raises(ServiceError, match="id-taken.*another plan: leave the id out") as refused:
        client.create_session("plan", plan=plans[1], **options)
    assert refused.value.members["differing"] == ["plan"]
    with pytest.raises(ServiceError, match="another seed, plan"):
        client.create_session("plan", plan=plans[1], seed=3, **options)


def test_other_scores_under_the_same_id_are_refused_and_the_same_in_other_pieces_are_not(client: Client) -> None:
    import pyarrow as pa

    scores = np.arange(20, dtype=np.float32)
    options: dict[str, Any] = {"size": 20, "batch_size": 5, "id": "scored"}
    client.create_session("acquisition", scores=scores, **options)
    pieces = pa.table({"scores": pa.chunked_array([scores[:7], scores[7:]])})
    client.create_session("acquisition", table=pieces, **options)
    with pytest.raises(ServiceError, match="another scores"):
        client.create_session("acquisition", scores=scores + 1, **options)
    with pytest.raises(ServiceError, match="another scores"):
        client.create_session("acquisition", **options)


def test_a_deletion_whose_answer_was_lost_is_done(url: str, client: Client) -> None:
    session = client.create_session("random", size=10, batch_size=5).id
    with Client(url, transport=Losing("DELETE"), patience=5) as other:
        other.delete(session)
        with pytest.raises(ServiceError, match="not-found"):
            other.delete(session)


def test_a_rewind_whose_answer_was_lost_is_done_once(url: str, client: Client) -> None:
    session = client.create_session("infobatch", size=10, batch_size=5, epochs=2)
    client.step(session.id, 1, reports=[(0, ONES)])
    with Client(url, transport=Losing("POST", "/rewind"), patience=5) as other:
        assert other.rewind(session.id, 0).generation == session.generation + 1
        assert other.rewind(session.id, 0).generation == session.generation + 2


def test_a_rewind_that_is_repeated_while_it_runs_is_one(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = live(request_seconds=0.4)
    store = server.app.state.service.store
    begun, go_on, rewind = threading.Event(), threading.Event(), store.rewind
    calls = []

    def slow(*arguments: Any) -> Any:
        calls.append(arguments)
        begun.set()
        go_on.wait(20)
        return rewind(*arguments)

    monkeypatch.setattr(store, "rewind", slow)
    with Client(server.url, patience=30) as client:
        session = client.create_session("random", size=10, batch_size=5)
        threading.Timer(1.0, go_on.set).start()
        assert client.rewind(session.id, 0).generation == session.generation + 1
    assert len(calls) == 1


def test_trainers_of_a_session_that_was_deleted_are_not_those_of_the_next(client: Client) -> None:
    options: dict[str, Any] = {"size": 10, "batch_size": 5, "epochs": 2, "id": "again"}
    old = client.create_session("infobatch", **options)
    client.delete("again")
    new = client.create_session("infobatch", **options)
    assert old.raw["digest"] == new.raw["digest"]
    with pytest.raises(ServiceError, match="stale-generation"):
        client.report("again", [(0, ONES)], generation=old.generation)
    assert client.session("again").raw["ranks"] == []


def test_what_is_missing_of_an_epoch_can_be_gone_on_without(
    client: Client, http: httpx.Client, assert_problem: Problem
) -> None:
    session = client.create_session("infobatch", size=20, batch_size=5, epochs=3, world_size=2).id
    with pytest.raises(ServiceError, match="epoch-not-open"):
        client.close_epoch(session, 0)
    client.step(session, 0)
    client.report(session, [(0, ONES), (1, ONES)])
    with pytest.raises(ServiceError, match="epoch 1 waits for 2 reports of epoch 0, of 1 ranks: 1;") as refused:
        client.step(session, 2)
    assert refused.value.members["missing_ranks"] == [1]
    for _ in range(2):
        assert client.close_epoch(session, 0).open_epochs == 2
    client.report(session, [(0, ONES), (1, ONES)], rank=1)
    assert client.step(session, 2).epoch == 1
    epochs = http.get(f"/v1/sessions/{session}/epochs").json()["epochs"]
    assert [epoch["missing"] for epoch in epochs] == [0, 2]
    client.close_epoch(session, 1)
    assert_problem(http.post(f"/v1/sessions/{session}/close-epoch", json={"epoch": 2}), 422, "bad-step")
    assert_problem(http.post(f"/v1/sessions/{session}/close-epoch", json={"epoch": -1}), 409, "epoch-not-open")
    assert_problem(http.post(f"/v1/sessions/{session}/close-epoch", json={}), 422, "bad-body")
    stateless = client.create_session("random", size=20, batch_size=5).id
    assert_problem(http.post(f"/v1/sessions/{stateless}/close-epoch", json={"epoch": 0}), 422, "other-method")


def test_what_may_change_changes_and_nothing_else(client: Client, http: httpx.Client, assert_problem: Problem) -> None:
    options: dict[str, Any] = {"size": 10, "batch_size": 5, "epochs": 2, "world_size": 2, "non_finite": "reject"}
    session = client.create_session("infobatch", id="changing", **options).id
    nan = np.array([1, 2, np.nan, 4, 5], np.float32)
    with pytest.raises(ServiceError, match="bad-report"):
        client.report(session, [(0, nan)])
    assert client.change(session, non_finite="keep").raw["spec"]["non_finite"] == "keep"
    client.report(session, [(0, nan)])
    with pytest.raises(ServiceError, match="missing-reports"):
        client.step(session, 1)
    client.change(session, on_missing={"after_seconds": 0})
    last = client.step(session, 1)
    assert (last.epoch, last.end_of_session) == (1, True)
    with pytest.raises(ServiceError, match="bad-step"):
        client.step(session, 2)
    assert client.change(session, epochs=3).epochs == 3
    client.report(session, [(1, ONES)])
    assert not client.step(session, 1).end_of_session
    assert client.step(session, 2).epoch == 2
    assert client.create_session("infobatch", id="changing", **options).epochs == 3
    for body, kind in [
        ({"epochs": 2}, "bad-parameters"),
        ({"seed": 1}, "bad-body"),
        ({"on_missing": {"quorum": 2, "after_seconds": 1}}, "bad-body"),
        ({"on_missing": {"quorum": 0.5}}, "bad-body"),
    ]:
        assert_problem(http.patch(f"/v1/sessions/{session}", json=body), 422, kind)
    assert client.change(session).epochs == 3


def test_epochs_that_are_added_leave_those_before_as_they_were(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url) as client:
        session = client.create_session("infobatch", size=40, batch_size=10, epochs=4, seed=2).id
        step, given = 0, []
        for _ in range(4):
            batch = client.step(session, step)
            while True:
                given.append(batch.indices)
                reports = [(step, np.sin(batch.indices + step).astype(np.float32))]
                step += 1
                if batch.end_of_epoch:
                    client.report(session, reports)
                    break
                batch = client.step(session, step, reports=reports)
        client.change(session, epochs=400)
        server.stop()
        server.start()
        for number, indices in enumerate(given):
            assert np.array_equal(client.step(session, number).indices, indices)
        assert client.step(session, step).epoch == 4
        assert client.session(session).raw["spec"]["planned_epochs"] == 4
