"""When a body is read, and how much of it: token, session and owner come first, over real sockets."""

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from curation.service.access.tokens import issue_token
from curation.service.client import Client, ServiceError
from curation.service.store import Store
from curation.service.store.tokens import read_tokens


class Place(NamedTuple):
    server: Any
    owner: str
    other: str


@pytest.fixture(scope="module")
def place(live: Callable[..., Any], memory: Path) -> Place:
    url = f"sqlite:///{tempfile.mkdtemp(dir=memory)}/store.db"
    store = Store(url)
    owner, other = (issue_token(store, name, frozenset({"select"}), owner=name)[1] for name in ("owner", "other"))
    store.close()
    place = Place(live(store=url, token_seconds=0.3, request_seconds=20), owner, other)
    with Client(place.server.url, token=owner) as client:
        client.create_session("random", size=100, batch_size=4, id="mine")
    with Client(place.server.url, token=other) as client:
        client.create_session("random", size=100, batch_size=4, id="theirs")
    return place


def first_line(port: int, path: str, token: str | None, length: int = 60 << 20) -> str:
    """What is answered to a request of which only the beginning of a large body has come."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", '{"step": [']).encode())
        return connection.recv(1000).decode().split("\r\n")[0]


PATHS = ("/v1/sessions", "/v1/sessions/mine/steps", "/v1/sessions/mine/rewind", "/v1/sessions/mine/choices")


@pytest.mark.parametrize("path", [*PATHS, "/v1/select/zipfit"])
def test_nobody_without_a_token_has_a_body_read(place: Place, path: str) -> None:
    assert " 401 " in first_line(place.server.port, path, None)
    assert " 401 " in first_line(place.server.port, path, "cur_x_y")


@pytest.mark.parametrize("kind", ["steps", "choices"])
def test_the_session_comes_before_the_body(place: Place, kind: str) -> None:
    port = place.server.port
    assert " 404 " in first_line(port, f"/v1/sessions/mine/{kind}", place.other)  # it is not told that there is one
    assert " 404 " in first_line(port, f"/v1/sessions/nobodys/{kind}", place.other)
    too_large = " 413 " if kind == "steps" else " 422 "  # a session whose steps are chosen from by nobody
    assert too_large in first_line(port, f"/v1/sessions/mine/{kind}", place.owner)


def test_a_route_that_asks_for_nothing_gets_small_bodies_only(place: Place) -> None:
    assert " 413 " in first_line(place.server.port, "/v1/sessions/mine/rewind", place.owner)


@pytest.mark.parametrize("losses", [300_000, 30_000])
def test_large_bodies_say_the_same_wherever_they_are_parsed(live: Callable[..., Any], losses: int) -> None:
    with Client(live().url) as client:
        session = client.create_session("infobatch", size=losses, batch_size=losses, epochs=3).id
        values = np.linspace(0, 1, losses, dtype=np.float32)
        client.step(session, 0)
        body = {"step": None, "reports": [{"step": 0, "losses": values.tolist()}]}
        path = f"{client.url}/v1/sessions/{session}/steps"
        httpx.post(path, json=body, timeout=60).raise_for_status()
        client.report(session, [(0, values)])
        found = httpx.get(f"{client.url}/v1/sessions/{session}/losses").json()["reports"]
        assert [(one["count"], one["mean"]) for one in found] == [(losses, pytest.approx(0.5))]
        body["reports"][0]["losses"][7] = "x"  # type: ignore[index]
        answer = httpx.post(path, json=body, timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:curation:problem:bad-body")
        assert "reports.0.losses.7" in answer.text


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reading tokens waits for this."""
    let_go = threading.Event()
    monkeypatch.setattr("curation.service.auth.read_tokens", lambda store: (let_go.wait(30), read_tokens(store))[1])
    yield let_go
    let_go.set()


def test_tokens_count_while_the_store_is_slow_to_name_them(place: Place, stuck: threading.Event) -> None:
    with Client(place.server.url, token=place.owner, patience=0) as client:
        start = time.monotonic()
        while time.monotonic() - start < 1.2:  # four times token_seconds
            client.step("mine", 0)
    with Client(place.server.url, token="cur_x_y", patience=0) as client, pytest.raises(ServiceError, match="no-token"):
        client.step("mine", 0)


def test_slow_reads_of_one_owner_hold_up_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    service, let_go = place.server.app.state.service, threading.Event()
    monkeypatch.setattr(service.store, "reports", lambda *_: let_go.wait(30) and iter(()))
    headers = [{"Authorization": f"Bearer {token}"} for token in (place.owner, place.other)]
    with ThreadPoolExecutor(20) as threads:
        slow = [
            threads.submit(httpx.get, f"{place.server.url}/v1/sessions/mine/losses", headers=headers[0], timeout=60)
            for _ in range(20)
        ]
        time.sleep(0.3)
        start = time.monotonic()
        for _ in range(3):
            time.sleep(0.2)  # the tokens are read again meanwhile
            httpx.get(f"{place.server.url}/v1/sessions/theirs", headers=headers[1], timeout=10).raise_for_status()
        assert time.monotonic() - start < 10
        let_go.set()
        assert {one.result().status_code for one in slow} == {200}


def test_late_work_is_not_called_a_late_body(live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server, let_go = live(request_seconds=0.5, body_seconds=0.3), threading.Event()
    service = server.app.state.service
    monkeypatch.setattr(service.store, "session", lambda id: let_go.wait(30) and None)
    answer = httpx.post(f"{server.url}/v1/sessions/slow/steps", json={"step": 0}, timeout=30)
    let_go.set()
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:curation:problem:busy")


def test_a_selection_ends_with_its_client(live: Callable[..., Any]) -> None:
    server = live(workers=1)
    small = {"texts": ["x"], "targets": ["y"], "k": 1}
    assert httpx.post(f"{server.url}/v1/select/zipfit", json=small, timeout=60).status_code == 200
    texts = {"texts": ["x" * 100_000] * 10, "targets": ["y" * 10] * 10_000, "k": 1, "codec": "gzip", "level": 9}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/select/zipfit", json=texts, timeout=1)
    # It would wait for as long as the other may take, and then be told that the server is busy.
    assert httpx.post(f"{server.url}/v1/select/zipfit", json=small, timeout=90).status_code == 200


def test_more_bytes_than_can_be_compressed_in_time_are_refused(live: Callable[..., Any]) -> None:
    texts = {"texts": ["x" * 1000] * 10, "targets": ["y"] * 10, "k": 1}
    answer = httpx.post(f"{live(max_text_bytes=100_000).url}/v1/select/zipfit", json=texts, timeout=60)
    assert (answer.status_code, "100100 bytes to compress" in answer.text) == (413, True)
