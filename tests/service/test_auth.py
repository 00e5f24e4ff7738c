"""Tokens, scopes, and what must not leak: each on a real server."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from curation.service.auth import InsecureError, check_exposure, issue_token
from curation.service.cli import token
from curation.service.client import Client, ServiceError
from curation.service.settings import Settings, load_settings
from curation.service.store import Store
from curation.service.store.database import StoreError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tokens.db"


def make(store_url: str, *scopes: str) -> str:
    store = Store(store_url)
    secret = issue_token(store, "test", frozenset(scopes))[1]
    store.close()
    return secret


def test_sessions_belong_to_a_token(live: Callable[..., Any], store_url: str) -> None:
    first, second, admin, reading = (make(store_url, scope) for scope in ("select", "select", "admin", "read"))
    url = live(store=store_url).url
    with Client(url, token=first, patience=0) as one, Client(url, token=second, patience=0) as two:
        session = one.create_session("random", size=10, batch_size=2).id
        one.step(session, 0)
        for attempt in (
            lambda: two.step(session, 0),
            lambda: two.session(session),
            lambda: two.delete(session),
            lambda: two.rewind(session, 0),
            lambda: two.checkpoint(session),
            lambda: two.choose(session, 0),
        ):
            with pytest.raises(ServiceError) as refused:
                attempt()
            assert (refused.value.status, refused.value.kind) == (403, "not-yours")
        assert [item["id"] for item in one.sessions()] == [session]
        assert list(two.sessions()) == []
    with Client(url, token=admin, patience=0) as boss:
        assert [item["id"] for item in boss.sessions()] == [session]
        boss.step(session, 0)
    with Client(url, token=reading, patience=0) as watcher:
        assert list(watcher.sessions()) == []
        with pytest.raises(ServiceError, match="bad-scope"):
            watcher.create_session("random", size=10, batch_size=2)
        with pytest.raises(ServiceError, match="bad-scope"):
            watcher.acquire([1.0], 1)
        with pytest.raises(ServiceError, match="bad-scope"):
            watcher.choose(session, 0)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Bearer cur_x_y",
        "Basic Y3VyOng=",
        "Bearer cur__",
        "{}x",
        "x{}",
        "Basic {}",
        "Bearer \xff",
    ],
)
def test_a_wrong_token_is_refused(live: Callable[..., Any], store_url: str, header: str | None) -> None:
    secret = make(store_url, "admin")
    url = live(store=store_url).url
    headers = {} if header is None else {"Authorization": header.format(f"Bearer {secret}").encode("latin-1")}
    with httpx.Client(base_url=url) as http:
        for path in ("/v1/sessions", "/metrics", "/v1/datasets", "/v1/sessions/x"):
            answer = http.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["type"] == "urn:curation:problem:no-token"
        assert http.get("/healthz").status_code == 200


def test_a_revoked_token_stops_working_and_opens_nothing(live: Callable[..., Any], store_url: str) -> None:
    secret = make(store_url, "select")
    url = live(store=store_url, token_seconds=0.05).url
    with Client(url, token=secret, patience=0) as client:
        session = client.create_session("random", size=10, batch_size=2).id
        store = Store(store_url)
        assert store.revoke_token(secret.split("_")[1])
        assert not store.revoke_token(secret.split("_")[1])
        store.close()
        time.sleep(0.1)
        with pytest.raises(ServiceError, match="no-token"):
            client.step(session, 0)
    assert httpx.get(f"{url}/v1/sessions").status_code == 401


def test_the_store_holds_no_secret(store_url: str, tmp_path: Path) -> None:
    secret = make(store_url, "select").split("_", 2)[2]
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()
    rows = sqlite3.connect(tmp_path / "tokens.db").execute("select hash from tokens").fetchall()
    assert len(rows[0][0]) == 32


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_the_network_is_refused_without_a_token(store_url: str, host: str) -> None:
    store = Store(store_url)
    settings = Settings(host=host, store=store_url)
    with pytest.raises(InsecureError, match="curation token create"):
        check_exposure(settings, store)
    issue_token(store, "one", frozenset({"select"}))
    check_exposure(settings, store)
    store.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(store_url: str, host: str) -> None:
    store = Store(store_url)
    check_exposure(Settings(host=host, store=store_url), store)
    store.close()


def test_the_command_line(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    made = runner.invoke(token, ["create", "trainer", "--scope", "select", "--store", store_url])
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert secret.startswith("cur_")
    monkeypatch.setenv("CURATION_STORE", store_url)
    listed = runner.invoke(token, ["list"])
    assert "trainer" in listed.stdout
    assert secret.split("_", 2)[2] not in listed.stdout
    assert runner.invoke(token, ["revoke", secret.split("_")[1]]).exit_code == 0
    assert runner.invoke(token, ["revoke", "nobody"]).exit_code == 2
    assert runner.invoke(token, ["create", "x", "--scope", "everything"]).exit_code == 2
    assert isinstance(token, typer.Typer)


def test_a_server_from_its_start_to_its_end(
    serve: Callable[..., Any], live: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve()
    command = [sys.executable, "-c", "import typer; from curation.service.cli import serve; typer.run(serve)"]
    second = subprocess.run(
        [*command, "--store", server.store, "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "another server owns this store" in second.stderr.replace("\n", " ")
    with Client(server.url) as client:
        session = client.create_session("random", size=100, batch_size=10).id
        client.step(session, 0)
    httpx.get(
        f"{server.url}/v1/sessions", headers={"Authorization": "Bearer cur_abc_verysecret", "X-Request-ID": "mine"}
    )
    body = json.dumps({"method": "random", "size": 10**6, "batch_size": 8}).encode()

    def slowly() -> Any:
        yield body[:10]
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.3)
        yield body[10:]

    # What is being answered when the signal comes is still answered.
    answer = httpx.post(
        f"{server.url}/v1/sessions", content=slowly(), headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 201
    assert server.process.wait(20) == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    asked = [line for line in lines if line.get("request") == "mine"]
    assert [(line["path"], line["status"], line["method"]) for line in asked] == [("/v1/sessions", 401, "GET")]
    assert "verysecret" not in server.log.read_text()
    with Client(live(store=server.store).url) as client:
        assert client.session(session).size == 100


def test_settings_from_a_file_the_environment_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("port: 1\nmax_rows: 7\nlog_level: error\n")
    monkeypatch.setenv("CURATION_PORT", "2")
    monkeypatch.setenv("CURATION_LOG_LEVEL", "debug")
    settings = load_settings(file, log_level="warning", host=None)
    assert (settings.max_rows, settings.port, settings.log_level, settings.host) == (7, 2, "warning", "127.0.0.1")
    file.write_text("prot: 1\n")
    with pytest.raises(ValueError, match="prot"):
        load_settings(file)
    with pytest.raises(ValueError, match="no such settings file"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense"])
def test_a_store_that_cannot_keep_its_word_is_refused(url: str) -> None:
    with pytest.raises(StoreError):
        Store(url)
