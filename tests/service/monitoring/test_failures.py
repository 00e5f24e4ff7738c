"""Failures: the cause of every 5xx is in the log once, with what the database said, and then counted."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.monitoring import failures
from curation.service.monitoring.failures import Failures
from curation.service.monitoring.metrics import Metrics


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the service logs meanwhile: the message, and its fields."""
    found: list[dict[str, Any]] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append({"message": record.getMessage(), **getattr(record, "fields", {})})

    handler = Listening(logging.ERROR)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def scope(request: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"method": "POST", "path": "/v1/x", "headers": headers, "state": {"request_id": request}}


def fill(store: Any) -> None:
    """From now on no file of the store grows: SQLite's own error of a full disk."""

    @event.listens_for(store.engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA max_page_count=1").close()

    store.engine.dispose()


def test_a_full_disk_is_in_the_log_once_and_not_ready(
    live: Callable[..., Any], lines: list[dict[str, Any]], assert_problem: Callable[..., dict[str, Any]]
) -> None:
    server = live()
    with httpx.Client(base_url=server.url, headers={"X-Request-ID": "first"}) as http:
        created = http.post("/v1/sessions", json={"method": "random", "size": 100_000, "batch_size": 50_000})
        session = created.json()["id"]
        fill(server.app.state.service.store)
        report = {"step": None, "reports": [{"step": 0, "losses": [1.0] * 50_000}]}
        for _ in range(3):
            answer = http.post(f"/v1/sessions/{session}/steps", json=report)
            assert_problem(answer, 503, "store-unavailable")
        logged = [line for line in lines if line["message"] == "request failed"]
        assert len(logged) == 1
        assert logged[0] == {
            "message": "request failed",
            "request": "first",
            "peer": "127.0.0.1",
            "token": None,
            "method": "POST",
            "path": f"/v1/sessions/{session}/steps",
            "kind": "store-unavailable",
            "error": "OperationalError",
            "cause": "database or disk is full",
        }
        assert 'curation_refusals_total{kind="store-unavailable"} 3.0' in http.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/x/steps"])
def test_an_unexpected_error_is_logged_with_its_trace_on_every_route(
    live: Callable[..., Any], lines: list[dict[str, Any]], path: str
) -> None:
    server = live()

    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("by design")

    server.app.state.service.authenticator.caller = fail
    method = "POST" if path.endswith("steps") else "GET"
    assert httpx.request(method, f"{server.url}{path}").status_code == 500
    assert [(line["kind"], line["error"], line["cause"]) for line in lines] == [
        ("internal", "ZeroDivisionError", "by design")
    ]


def test_a_cause_that_goes_on_is_counted_a_line_a_minute(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "SECONDS", 0.02)

    async def run() -> None:
        taken = Failures(Metrics())
        for number in range(5):
            taken.take(Refusal("busy", "too slow"), TimeoutError(), scope(f"r{number}"))
        await asyncio.sleep(0.1)
        taken.take(Refusal("busy", "too slow"), TimeoutError(), scope("later"))
        taken.take(Refusal("busy", "too slow"), TimeoutError(), scope("last"))
        taken.close()

    asyncio.run(run())
    assert [(line["message"], line["request"], line.get("times")) for line in lines] == [
        ("request failed", "r0", None),
        ("requests failed again", "r4", 4),
        ("request failed", "later", None),
        ("requests failed again", "last", 1),
    ]
    assert {line["cause"] for line in lines} == {"too slow"}


def test_causes_without_end_are_few_lines(lines: list[dict[str, Any]]) -> None:
    async def run() -> None:
        taken = Failures(Metrics())
        for number in range(1000):
            taken.take(Refusal("internal", "?"), RuntimeError(f"number {number} " + "x" * 1000), scope("r"))
        taken.close()

    asyncio.run(run())
    assert len(lines) <= 102
    assert max(len(line["cause"]) for line in lines) <= 500


def test_refusals_are_counted_and_failed_logins_apart(lines: list[dict[str, Any]]) -> None:
    metrics = Metrics()
    taken = Failures(metrics)
    refusal = Refusal("no-token", "send one")
    taken.take(refusal, refusal, scope("r"))
    taken.take(refusal, refusal, scope("r", (b"authorization", b"Bearer cur_x_y")))
    sample = metrics.registry.get_sample_value
    assert sample("curation_refusals_total", {"kind": "no-token"}) == 2
    assert sample("curation_refusals_total", {"kind": "store-unavailable"}) == 0
    assert sample("curation_failed_logins_total") == 1
    assert lines == []


def test_a_commit_that_fails_when_nobody_waits_any_more_is_logged(
    live: Callable[..., Any], lines: list[dict[str, Any]], assert_problem: Callable[..., dict[str, Any]]
) -> None:
    server = live(request_seconds=1, body_seconds=1)
    store = server.app.state.service.store

    def hang(_: Any) -> None:
        time.sleep(1.5)
        raise OperationalError("INSERT", None, Exception("server closed the connection unexpectedly"))

    store.add_reports = hang
    with httpx.Client(base_url=server.url) as http:
        http.post("/v1/sessions", json={"id": "x", "method": "random", "size": 4, "batch_size": 4}).raise_for_status()
        answer = http.post("/v1/sessions/x/steps", json={"reports": [{"step": 0, "losses": [1.0] * 4}]})
        assert_problem(answer, 503, "busy")
        for _ in range(200):
            if len(lines) > 1:
                break
            time.sleep(0.02)
    assert [line["cause"] for line in lines] == [
        "the answer takes longer than the server's limit: try again",
        "server closed the connection unexpectedly",
    ]
