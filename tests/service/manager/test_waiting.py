"""Requests that wait for other ranks: held until what they wait for is there, and let go when it cannot come."""

import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.pair import Pair
from curation.service.client import Client, ServiceError, waiting
from curation.service.client import requests as client_requests
from curation.service.manager.memory import openings
from curation.service.manager.progress import missing_reports
from curation.service.manager.waiting import EpochWait
from curation.service.session.session import Report
from curation.service.session.spec import Grace, SessionSpec
from curation.service.store import SessionRow

ONES = np.ones(5, np.float32)
NOTHING = np.empty(0, np.float32)
CHOICE = {"step": 0, "scores": [1.0, 2.0]}


class Counting(httpx.HTTPTransport):
    """A network that counts requests, and says when the first is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.begun = 0, threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.count += 1
        self.begun.set()
        return super().handle_request(request)


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live().url)


def new_session(url: str, ranks: int = 2, **options: Any) -> str:
    """A session of two epochs whose first ends with its first step."""
    with Client(url) as client:
        options = {"size": 5 * ranks, "batch_size": 5, "epochs": 2, "world_size": ranks} | options
        session = client.create_session("infobatch", **options).id
        client.step(session, 0)
        return session


def test_a_report_that_comes_while_the_store_is_read_counts(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = live()
    store = server.app.state.service.store
    with Client(server.url, patience=0) as client, Client(server.url) as other:
        session = new_session(server.url)

        def look(*given: Any) -> Any:
            missing = missing_reports(*given)
            assert missing.tolist() == [[1, 0]]
            other.report(session, [(0, 3 * ONES)], rank=1)
            return missing

        monkeypatch.setattr(openings, "missing_reports", look)
        assert client.step(session, 1, reports=[(0, ONES)]).epoch == 1
        row = store.session(session)
        assert [record.missing.tolist() for record in store.records(row)] == [[], []]
        assert sorted(store.state(row.key, 1)[1]["scores"]) == [1.0] * 5 + [3.0] * 5


def ask(url: str, session: str, rank: int, network: Counting | None = None, **options: Any) -> Any:
    with Client(url, transport=network, **{"patience": 30, **options}) as client:
        return client.step(session, 1, rank=rank, reports=[(0, ONES)])


def waits(work: "Future[Any]", network: Counting) -> bool:
    assert network.begun.wait(20)
    time.sleep(0.1)
    return not work.done()


def test_ranks_that_wait_ask_once_and_are_answered_when_the_last_one_reports(url: str) -> None:
    ranks, session = 8, new_session(url, 8)
    networks = [Counting() for _ in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        early = [pool.submit(ask, url, session, rank, networks[rank]) for rank in range(1, ranks)]
        assert all(waits(work, networks[rank]) for rank, work in enumerate(early, 1))
        last = ask(url, session, 0)
        batches = [last, *(work.result(30) for work in early)]
    assert {batch.epoch for batch in batches} == {1}
    assert sorted(np.concatenate([batch.indices for batch in batches]).tolist()) == list(range(5 * ranks))
    assert [network.count for network in networks[1:]] == [1] * (ranks - 1)


def test_ranks_of_a_host_wait_together(url: str) -> None:
    session, network = new_session(url, 3), Counting()
    with Client(url) as client, Client(url, transport=network) as host, ThreadPoolExecutor(1) as pool:
        reports = {rank: [(0, ONES)] for rank in (0, 1)}
        work = pool.submit(host.batches, session, 1, ranks=(0, 1), reports=reports)
        assert waits(work, network)
        client.report(session, [(0, ONES)], rank=2)
        assert {batch.epoch for batches in work.result(20).values() for batch in batches} == {1}
    assert network.count == 1


def test_a_request_waits_no_longer_than_requests_may_take(live: Callable[..., Any]) -> None:
    server = live(request_seconds=1)
    session = new_session(server.url)
    for body in ({"step": 1, "wait": 1000}, {"step": 1, "wait": 0.2}, {"step": 1}):
        answer = httpx.post(f"{server.url}/v1/sessions/{session}/steps", json=body, timeout=30)
        assert (answer.status_code, answer.json()["missing_count"]) == (409, 2)
    for wait in (-1, "soon"):
        body = {"step": 1, "wait": wait}
        assert httpx.post(f"{server.url}/v1/sessions/{session}/steps", json=body).status_code == 422
    for metadata in ("nan", "-1", "x"):
        schema = client_requests.pa.schema([], {"rank": "0", "step": "1", "wait": metadata})
        body = schema.serialize().to_pybytes() + b"\xff\xff\xff\xff\0\0\0\0"
        headers = {"Content-Type": client_requests.ARROW}
        answer = httpx.post(f"{server.url}/v1/sessions/{session}/steps", content=body, headers=headers)
        assert answer.json()["type"] == "urn:curation:problem:bad-body"


def test_waiting_for_a_rank_takes_no_patience(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "LOG_EVERY", 0.5)
    server = live(request_seconds=0.6)
    session, network = new_session(server.url), Counting()
    with pytest.raises(ServiceError, match="missing-reports"):
        ask(server.url, session, 0, patience=30, wait_patience=0.1)
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        work = pool.submit(ask, server.url, session, 0, network, patience=0.3, wait_patience=None)
        while network.count < 4:
            assert not work.done()
            time.sleep(0.01)
        ask(server.url, session, 1)
        assert work.result(20).epoch == 1
    assert "epoch 1 waits for 1 reports of epoch 0, of 1 ranks: 1;" in caplog.text


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda client, session: client.close_epoch(session, 0), None),
        (lambda client, session: client.change(session, on_missing="skip"), None),
        (lambda client, session: client.rewind(session, 0), "stale-generation"),
        (lambda client, session: client.delete(session), "not-found"),
    ],
)
def test_who_waits_is_let_go_when_the_session_changes(
    url: str, change: Callable[[Client, str], Any], outcome: str | None
) -> None:
    session, network = new_session(url), Counting()
    with Client(url) as client, Client(url, transport=network) as waiter, ThreadPoolExecutor(1) as pool:
        generation = client.session(session).generation
        work = pool.submit(waiter.step, session, 1, reports=[(0, ONES)], generation=generation)
        assert waits(work, network)
        change(client, session)
        if outcome is None:
            assert work.result(20).epoch == 1
        else:
            with pytest.raises(ServiceError, match=outcome):
                work.result(20)
    assert network.count == 1


def test_an_epoch_goes_on_without_the_missing_after_a_time_and_with_a_quorum(url: str) -> None:
    timed = new_session(url, on_missing={"after_seconds": 0.2})
    assert ask(url, timed, 0).epoch == 1
    both = new_session(url, 4, on_missing={"after_seconds": 0.1, "quorum": 0.6})
    network = Counting()
    with Client(url) as client, ThreadPoolExecutor(1) as pool:
        work = pool.submit(ask, url, both, 0, network)
        assert waits(work, network)
        client.report(both, [(0, ONES)], rank=1)
        time.sleep(0.15)
        assert not work.done()
        client.report(both, [(0, ONES)], rank=2)
        assert work.result(20).epoch == 1
        assert httpx.get(f"{url}/v1/sessions/{both}/epochs").json()["epochs"][1]["missing"] == 1


def test_a_rank_waits_for_the_parts_of_a_choice(url: str) -> None:
    rng = np.random.default_rng(0)
    with Client(url) as client, ThreadPoolExecutor(4) as pool:
        session = client.create_session("jest", size=32, batch_size=8, world_size=4, parameters={"chunks": 2}).id
        networks = [Counting() for _ in range(4)]

        def choose(rank: int) -> Any:
            with Client(url, transport=networks[rank]) as own:
                pairs = (Pair(*rng.normal(size=(2, 8, 4)).astype(np.float32)) for _ in range(2))
                return own.choose(session, 0, *pairs, rank=rank)

        early = [pool.submit(choose, rank) for rank in range(3)]
        assert all(waits(work, networks[rank]) for rank, work in enumerate(early))
        chosen = [choose(3), *(work.result(20) for work in early)]
    assert len(np.unique(np.concatenate([one.indices for one in chosen]))) == sum(len(one.indices) for one in chosen)
    assert [network.count for network in networks] == [1] * 4


@pytest.mark.parametrize(("named", "outcome"), [(True, "stale-generation"), (False, None)])
def test_who_waits_for_a_choice_is_let_go_by_a_rewind(url: str, named: bool, outcome: str | None) -> None:
    pairs = [Pair(*np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)) for _ in range(2)]
    network = Counting()
    with Client(url) as client, Client(url, transport=network) as waiter, ThreadPoolExecutor(1) as pool:
        session = client.create_session("jest", size=16, batch_size=8, world_size=2, parameters={"chunks": 2}).id
        generation = client.session(session).generation if named else None
        work = pool.submit(waiter.choose, session, 0, *pairs, rank=0, generation=generation)
        assert waits(work, network)
        client.rewind(session, 0)
        if outcome is not None:
            with pytest.raises(ServiceError, match=outcome):
                work.result(5)
        else:
            time.sleep(1.5)
            client.choose(session, 0, *pairs, rank=1)
            assert len(work.result(5).indices)
    assert network.count == 1


def test_a_server_that_stops_lets_go_of_who_waits(serve: Callable[..., Any]) -> None:
    server = serve(shutdown_seconds="60")
    session, network = new_session(server.url), Counting()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(ask, server.url, session, 0, network)
        assert waits(work, network)
        server.stop()
        server.start()
        ask(server.url, session, 1)
        assert work.result(30).epoch == 1


SPEC = SessionSpec(method="infobatch", size=100, batch_size=5, world_size=4)
ROW = SessionRow(1, "s", None, 0, SPEC, 100, 0, 0.0)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.integers(1, 6),
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(8, 18)), max_size=40),
    looked=st.integers(0, 40),
    quorum=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_wait_knows_what_is_missing(steps: int, arrivals: list[tuple[int, int]], looked: int, quorum: float) -> None:
    spec = SPEC.model_copy(update={"on_missing": Grace(after_seconds=0, quorum=quorum)})
    wait = EpochWait(dataclasses.replace(ROW, spec=spec), 1)
    due = {(rank, 10 + step) for step in range(steps) for rank in range(4)}
    for number, place in enumerate([*arrivals, (0, 0)]):
        if number == min(looked, len(arrivals)):
            wait.looked(np.array(sorted(due, key=lambda at: at[::-1]), np.int64).reshape(-1, 2), 4)
        wait.committed([Report(*place, NOTHING)])
        due -= {place}
    assert {(int(rank), int(step)) for rank, step in wait.missing(100)} == due
    assert wait.left == len(due)
    late = {rank for rank, _ in due}
    assert set(wait.late_ranks().tolist()) == late
    assert (wait.opens_in() == 0) == (4 - len(late) >= 4 * quorum or not due)


@pytest.mark.parametrize(("route", "asked"), [("steps", {"step": 1}), ("batches", {"step": 1}), ("choices", CHOICE)])
def test_who_waits_ends_when_the_client_leaves(live: Callable[..., Any], route: str, asked: dict[str, Any]) -> None:
    server = live()
    with Client(server.url) as client:
        jest: dict[str, Any] = {
            "size": 8,
            "batch_size": 2,
            "world_size": 2,
            "parameters": {"joint": False, "filter_ratio": 0.5},
        }
        session = new_session(server.url) if route != "choices" else client.create_session("jest", **jest).id
    content = json.dumps({**asked, "wait": 30}).encode()
    head = f"POST /v1/sessions/{session}/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(5)]
    metrics = server.app.state.service.metrics
    for connection in connections:
        connection.sendall(request)
    until(lambda: metrics.open == len(connections))
    for connection in connections:
        connection.close()
    until(lambda: metrics.open == 0)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)
