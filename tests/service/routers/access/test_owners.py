"""Quotas over a real server: who goes beyond is refused and told so, and nobody else notices."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from curation.service.access.tokens import issue_token
from curation.service.session.caller import ANYONE
from curation.service.store import Store
from curation.service.store.owners import set_quota

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]
SESSION = {"method": "random", "size": 10, "batch_size": 2}


@pytest.fixture
def server(live: Callable[..., Any]) -> Any:
    return live(token_seconds=0, owner_sessions=50)


@pytest.fixture
def connect(server: Any) -> Any:
    """Opens a connection for an owner's token."""
    store = Store(server.settings.store)
    opened: list[httpx.Client] = []

    def connect(owner: str, *scopes: str) -> httpx.Client:
        secret = issue_token(store, owner, frozenset(scopes or {"select"}), owner=owner)[1]
        opened.append(httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()
    store.close()


def test_sessions_beyond_the_quota_are_refused(connect: Any, assert_problem: Problem) -> None:
    greedy, modest = connect("greedy"), connect("modest")
    answers = [greedy.post("/v1/sessions", json={**SESSION, "id": f"s{number}"}) for number in range(60)]
    assert [answer.status_code for answer in answers] == [201] * 50 + [429] * 10
    problem = assert_problem(answers[-1], 429, "quota")
    assert (problem["limit"], answers[-1].headers["retry-after"]) == ("sessions", "60")
    assert greedy.post("/v1/sessions", json={**SESSION, "id": "s7"}).status_code == 200  # it is there
    assert greedy.post("/v1/sessions/s7/steps", json={"step": 0}).status_code == 200
    assert modest.post("/v1/sessions", json=SESSION).status_code == 201
    checkpoint = greedy.get("/v1/sessions/s7/checkpoint").content
    arrow = {"Content-Type": "application/vnd.apache.arrow.stream"}
    assert_problem(greedy.post("/v1/sessions/import", content=checkpoint, headers=arrow), 429, "quota")
    assert greedy.delete("/v1/sessions/s7").status_code == 204
    assert greedy.post("/v1/sessions/import", content=checkpoint, headers=arrow).status_code == 201


def test_a_quota_holds_when_many_create_at_once(connect: Any) -> None:
    clients = [connect("greedy") for _ in range(8)]
    statuses: list[int] = []

    def create(http: httpx.Client) -> None:
        statuses.extend(http.post("/v1/sessions", json=SESSION).status_code for _ in range(10))

    threads = [threading.Thread(target=create, args=(http,)) for http in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (statuses.count(201), statuses.count(429)) == (50, 30)


def test_requests_beyond_the_quota_are_refused(connect: Any, server: Any, assert_problem: Problem) -> None:
    boss, greedy, modest = connect("boss", "admin"), connect("greedy"), connect("modest")
    assert greedy.post("/v1/sessions", json={**SESSION, "id": "s"}).status_code == 201
    changed = boss.patch("/v1/owners/greedy", json={"requests_per_second": 0.1})
    assert changed.json() == {"sessions": None, "requests_per_second": 0.1, "bytes_per_second": None}
    store = Store(server.settings.store)
    set_quota(store, ANYONE, "modest", {"bytes_per_second": 1e9})
    store.close()
    for path, body in (("/v1/sessions/s/steps", {"step": 0}), ("/v1/sessions", SESSION)):
        answers = [greedy.post(path, json=body) for _ in range(100)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) > 10
        assert_problem(refused[-1], 429, "quota")
        assert 1 <= int(refused[-1].headers["retry-after"]) <= 10
    assert all(modest.get("/v1/sessions").status_code == 200 for _ in range(100))
    metrics = boss.get("/metrics").text
    (line,) = [line for line in metrics.splitlines() if line.startswith('curation_owner_refused_total{owner="greedy"}')]
    assert float(line.split()[-1]) >= len(refused)
    owners = {line["name"]: line for line in boss.get("/v1/owners").json()["owners"]}
    assert (owners["greedy"]["tokens"], owners["greedy"]["quota"]["requests_per_second"]) == (1, 0.1)
    assert (owners["boss"]["sessions"], owners["modest"]["quota"]["bytes_per_second"]) == (0, 1e9)
    assert_problem(greedy.get("/v1/owners"), 429, "quota")
    assert_problem(modest.patch("/v1/owners/modest", json={"sessions": 10**6}), 403, "bad-scope")


def test_bytes_beyond_the_quota_are_refused(connect: Any, server: Any, assert_problem: Problem) -> None:
    greedy = connect("greedy")
    store = Store(server.settings.store)
    set_quota(store, ANYONE, "greedy", {"bytes_per_second": 10_000})
    store.close()

    def chunks() -> Any:  # no Content-Length says how much it will be
        yield from (b" " * 50_000 for _ in range(4))
        yield b'{"method": "random", "size": 10, "batch_size": 2}'

    json = {"Content-Type": "application/json"}
    assert greedy.post("/v1/sessions", content=chunks(), headers=json).status_code == 201
    refused = greedy.get("/v1/sessions")
    assert assert_problem(refused, 429, "quota")["limit"] == "bytes_per_second"
    assert 1 <= int(refused.headers["retry-after"]) <= 20  # 20 s less what a busy machine took until here
