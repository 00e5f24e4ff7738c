"""Waiting of the client: what is sent again, for how long, what cannot help, and how a wait is cut short."""

import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from curation.service.client import Client, ServiceError, waiting
from curation.service.client.waiting import Backoff, Interrupted, interruptible, wait


def client_of(answers: list[Any], patience: float = 60) -> tuple[Client, list[float]]:
    """A client whose requests are answered, or fail, one after the other, and when they were sent."""
    sent: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(time.monotonic())
        outcome = answers[min(len(sent), len(answers)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if isinstance(outcome, httpx.Response) else httpx.Response(*outcome)

    return Client("http://test", patience=patience, transport=httpx.MockTransport(answer)), sent


def busy(seconds: int) -> httpx.Response:
    document = {"type": "urn:curation:problem:busy", "detail": "working"}
    return httpx.Response(503, json=document, headers={"Retry-After": str(seconds)})


GOOD = httpx.Response(200, json={"datasets": ["one"]})


def test_retry_after_is_obeyed() -> None:
    client, sent = client_of([busy(1), GOOD])
    with client:
        assert client.datasets() == ["one"]
    assert sent[1] - sent[0] >= 1


def test_patience_ends_when_it_says() -> None:
    client, sent = client_of([httpx.ConnectError("refused")], patience=1.5)
    with client, pytest.raises(ServiceError, match="unreachable: no answer: refused"):
        client.datasets()
    assert sent[-1] - sent[0] >= 1.4


def test_an_answer_asks_to_wait_for_longer_than_patience() -> None:
    client, sent = client_of([busy(3600)], patience=0.3)
    with client, pytest.raises(ServiceError, match="busy"):
        client.datasets()
    assert len(sent) == 2


def test_what_is_sent_again_is_logged_once_and_then_each_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    backoff = Backoff(200, "POST http://x/steps")
    with caplog.at_level(logging.INFO, "curation.client"):
        for now[0] in (0.0, 1.0, 59.0, 61.0, 90.0):
            assert backoff.pause("no answer: refused") is not None
        assert Backoff(200, "POST http://x/steps").pause("rank 3 is late", expected=True) is not None
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "POST http://x/steps is sent again, for 200 s more at most: no answer: refused"
    assert lines[1] == "POST http://x/steps is sent again, for 139 s more at most: no answer: refused"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8765", "localhost:8765", "ftp://host", "http://", "", "http://[half", "/v1"]
)
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="url is"):
        Client(url)


@pytest.mark.parametrize("token", ["secret\n", "two words", "schlüssel"])
def test_a_token_that_no_header_may_have_is_refused_at_once(token: str) -> None:
    with pytest.raises(ValueError, match="line's end"):
        Client("http://test", token=token)


@pytest.mark.timeout(30)
def test_tls_to_a_server_without_it_fails_at_once(live: Callable[..., Any]) -> None:
    url = str(live().url).replace("http:", "https:")
    with Client(url) as client, pytest.raises(ServiceError, match="no TLS with this server"):
        client.datasets()


def failing(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_tls_that_breaks_off_is_tried_again() -> None:
    client, sent = client_of([failing(httpx.ConnectError("eof"), ssl.SSLEOFError(8, "EOF occurred")), GOOD])
    with client:
        assert client.datasets() == ["one"]
    assert len(sent) == 2


def test_an_unknown_host_is_given_a_while_at_first_and_patience_later(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.service.client import requests

    monkeypatch.setattr(requests, "_UNKNOWN_HOST_SECONDS", 0.2)
    unknown = failing(httpx.ConnectError("unknown"), socket.gaierror(-2, "Name or service not known"))
    client, _ = client_of([unknown])
    with client, pytest.raises(ServiceError, match="unreachable"):
        client.datasets()
    client, _ = client_of([GOOD, unknown, unknown, unknown, unknown, unknown, unknown, GOOD])
    with client:
        assert [client.datasets() for _ in range(2)] == [["one"]] * 2


def test_a_wait_is_cut_short_from_another_thread() -> None:
    stop, ended = threading.Event(), []

    def work() -> None:
        with interruptible(stop):
            try:
                wait(60)
            except Interrupted:
                ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    stop.set()
    thread.join(10)
    assert ended == [True]


TRAINING = """
import sys, torch
from curation.service.client import Client, RemoteBatchSampler
client = Client(sys.argv[1])
session = client.create_session("random", size=1000, batch_size=10).id
for number, batch in enumerate(RemoteBatchSampler(client, session)):
    if number == 2:
        print("away", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_training_at_once_while_the_server_is_away(live: Callable[..., Any], tmp_path: Path) -> None:
    server = live()
    command = [sys.executable, "-c", TRAINING, server.url]
    with (
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"away\n"
        server.stop()
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) != 0
    assert "KeyboardInterrupt" in (tmp_path / "err").read_text()
