"""Tokens, scopes, and what must not leak: each on a real server."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from curation.service.access.tokens import TokenError, issue_token, renew_token
from curation.service.auth import InsecureError, check_exposure
from curation.service.client import Client, ServiceError
from curation.service.session.caller import ANYONE
from curation.service.settings import Settings, load_settings
from curation.service.store import Store
from curation.service.store.owners import rename_owner
from curation.service.store.sqlite.ownership import StoreError
from curation.service.store.tokens import read_tokens, revoke_token

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tokens.db"


def make(store_url: str, *scopes: str, **options: Any) -> str:
    store = Store(store_url)
    secret = issue_token(store, "test", frozenset(scopes), **options)[1]
    store.close()
    return secret


def id_of(secret: str) -> str:
    return secret.split("_")[1]


def test_sessions_belong_to_an_owner(live: Callable[..., Any], store_url: str) -> None:
    first = make(store_url, "select", owner="vision")
    second, admin, reading = (make(store_url, scope) for scope in ("select", "admin", "read"))
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
            with pytest.raises(ServiceError) as missing:
                two.session("none")
            # Who may not use a session is not told that there is one.
            assert (refused.value.status, refused.value.kind) == (missing.value.status, missing.value.kind)
            assert str(refused.value).replace(session, "none") == str(missing.value)
        assert [item["id"] for item in one.sessions()] == [session]
        assert list(two.sessions()) == []
    for scope in ("select", "read"):
        with Client(url, token=make(store_url, scope, owner="vision"), patience=5) as colleague:
            assert [item["id"] for item in colleague.sessions()] == [session]
            assert colleague.session(session).id == session
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
        assert revoke_token(store, ANYONE, id_of(secret))
        assert not revoke_token(store, ANYONE, id_of(secret))
        store.close()
        time.sleep(0.1)
        with pytest.raises(ServiceError, match="was revoked"):
            client.step(session, 0)
    assert httpx.get(f"{url}/v1/sessions").status_code == 401


@pytest.mark.parametrize("method", ["infobatch", "jest"])
def test_a_token_that_is_revoked_while_it_waits_gets_no_answer(
    live: Callable[..., Any], store_url: str, method: str
) -> None:
    going, staying = make(store_url, "select", owner="team"), make(store_url, "select", owner="team")
    server = live(store=store_url, token_seconds=0.05)
    refused: list[str] = []
    with Client(server.url, token=going, patience=20) as one, Client(server.url, token=staying, patience=0) as other:
        parameters = {"joint": False, "filter_ratio": 0.5} if method == "jest" else {}
        options: dict[str, Any] = {"size": 8, "batch_size": 4, "epochs": 2, "world_size": 2, "parameters": parameters}
        session = other.create_session(method, **options).id
        for rank in range(2):
            other.step(session, 0, rank=rank)

        def ask(client: Client, rank: int) -> None:
            if method == "jest":
                client.choose(session, 0, scores=[1.0, 2.0, 3.0, 4.0], rank=rank)
            else:
                client.step(session, 1, rank=rank, reports=[(0, [1.0, 2.0, 3.0, 4.0])])

        def wait() -> None:
            try:
                ask(one, 0)
            except ServiceError as error:
                refused.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        state = server.app.state.service
        while not state.choices._begun and not any(wait.waiting for wait in state.sessions.waits):
            time.sleep(0.01)
        store = Store(store_url)
        assert revoke_token(store, ANYONE, id_of(going))
        store.close()
        time.sleep(0.1)
        ask(other, 1)
        thread.join(20)
    assert len(refused) == 1
    assert "was revoked" in refused[0]


def test_a_token_works_until_it_expires(live: Callable[..., Any], store_url: str) -> None:
    secret = make(store_url, "select", lasts=1.0)
    url = live(store=store_url, token_seconds=60).url
    with Client(url, token=secret, patience=0) as client:
        session = client.create_session("random", size=10, batch_size=2).id
        client.step(session, 0)
        deadline = time.monotonic() + 20
        with pytest.raises(ServiceError, match="this secret of token .* ended"):  # noqa: PT012
            while time.monotonic() < deadline:
                client.step(session, 0)


def test_a_rotated_token_keeps_its_sessions(live: Callable[..., Any], store_url: str) -> None:
    old = make(store_url, "select", owner="vision")
    url = live(store=store_url, token_seconds=0).url
    with Client(url, token=old, patience=0) as client:
        session = client.create_session("random", size=10, batch_size=2).id
        store = Store(store_url)
        new = renew_token(store, id_of(old), grace=600)[1]
        assert client.session(session).id == session
        with Client(url, token=new, patience=0) as renewed:
            assert renewed.session(session).id == session
            newest = renew_token(store, id_of(old), grace=0)[1]
            store.close()
            for ended, why in ((client, "unknown or malformed"), (renewed, "when it was rotated")):
                with pytest.raises(ServiceError, match=why):
                    ended.step(session, 0)
        with Client(url, token=newest, patience=0) as current:
            current.step(session, 0)


def test_a_new_token_works_at_once(live: Callable[..., Any], store_url: str) -> None:
    first = make(store_url, "select")
    url = live(store=store_url, token_seconds=600).url
    with Client(url, token=first) as client:
        assert list(client.sessions()) == []
        with Client(url, token=make(store_url, "select"), patience=0) as other:
            assert list(other.sessions()) == []


def test_when_a_token_was_used_is_noted(live: Callable[..., Any], store_url: str) -> None:
    used, unused = make(store_url, "select"), make(store_url, "select")
    server = live(store=store_url)
    before = time.time()
    with Client(server.url, token=used) as client:
        for _ in range(5):
            assert list(client.sessions()) == []
    server.stop()
    store = Store(store_url)
    times = {token.id: token.used for token in read_tokens(store)}
    store.close()
    noted = times[id_of(used)]
    assert noted is not None
    assert before <= noted <= time.time()
    assert times[id_of(unused)] is None


def test_the_first_token_takes_nobodys_sessions_away_unsaid(live: Callable[..., Any], store_url: str) -> None:
    server = live(store=store_url, token_seconds=0)
    with Client(server.url, patience=0) as nobody:
        session = nobody.create_session("infobatch", size=10, batch_size=2, epochs=3).id
        nobody.step(session, 0)
        with pytest.raises(TokenError, match="1 sessions that were made without a token"):
            make(store_url, "select", owner="vision")
        nobody.step(session, 1)
        secret = make(store_url, "select", owner="vision", adopt=True)
        with pytest.raises(ServiceError, match=r"asks for a token since .* Client\(url, token=") as refused:
            nobody.step(session, 1)
        assert refused.value.kind == "no-token"
    with Client(server.url, token=secret, patience=0) as trainer:
        trainer.step(session, 1)
        assert [item["id"] for item in trainer.sessions()] == [session]


def test_a_renamed_owner_keeps_what_it_has(live: Callable[..., Any], store_url: str) -> None:
    secret, other = make(store_url, "select"), make(store_url, "select", owner="other")
    url = live(store=store_url, token_seconds=0).url
    with Client(url, token=secret, patience=0) as client, Client(url, token=other, patience=0) as stranger:
        session = client.create_session("random", size=10, batch_size=2).id
        store = Store(store_url)
        assert rename_owner(store, ANYONE, id_of(secret), "vision") == (1, 1)
        client.step(session, 0)
        with pytest.raises(ServiceError, match="not-found"):
            stranger.step(session, 0)
        assert rename_owner(store, ANYONE, "vision", "other") == (1, 1)
        stranger.step(session, 0)
        client.step(session, 0)
        # A new owner of the old name has nothing of it, also where the session is in memory under that name.
        own = stranger.create_session("random", size=10, batch_size=2).id
        assert rename_owner(store, ANYONE, "other", "vision") == (2, 2)
        list(stranger.sessions())
        store.close()
        with Client(url, token=make(store_url, "select", owner="other"), patience=0) as newcomer:
            for id in (session, own):
                with pytest.raises(ServiceError, match="not-found"):
                    newcomer.step(id, 0)


def test_read_all_reads_and_changes_nothing(live: Callable[..., Any], store_url: str) -> None:
    maker, watching = make(store_url, "select"), make(store_url, "select", "read-all")
    url = live(store=store_url).url
    with Client(url, token=maker) as client, Client(url, token=watching, patience=0) as watcher:
        session = client.create_session("random", size=10, batch_size=2).id
        assert [item["id"] for item in watcher.sessions()] == [session]
        assert watcher.session(session).id == session
        own = watcher.create_session("random", size=10, batch_size=2).id
        watcher.step(own, 0)
        changes: tuple[Callable[[], Any], ...] = (
            lambda: watcher.step(session, 0),
            lambda: watcher.rewind(session, 0),
            lambda: watcher.delete(session),
        )
        for change in changes:
            with pytest.raises(ServiceError, match="not-found"):
                change()
        with pytest.raises(ServiceError, match="id-taken"):
            watcher.create_session("random", size=10, batch_size=2, id=session)
        headers = {"Authorization": f"Bearer {watching}"}
        listed = httpx.get(f"{url}/dashboard/sessions", headers=headers).json()["sessions"]
        assert {line["id"] for line in listed} == {session, own}
        assert httpx.get(f"{url}/v1/tokens", headers=headers).status_code == 403


def test_metrics_name_only_what_the_reader_may_see(live: Callable[..., Any], store_url: str) -> None:
    one, two = make(store_url, "select", owner="vision"), make(store_url, "select", owner="speech")
    url = live(store=store_url).url
    for secret, session in ((one, "secret-of-vision"), (two, "secret-of-speech")):
        with Client(url, token=secret) as client:
            client.create_session("random", size=10, batch_size=2, id=session)

    def seen(secret: str) -> set[str]:
        text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {secret}"}).text
        assert "curation_sessions_in_memory 2.0" in text
        by_session = {name for name in ("vision", "speech") if f'session="secret-of-{name}"' in text}
        by_owner = {name for name in ("vision", "speech") if f'curation_owner_requests_total{{owner="{name}"}}' in text}
        assert by_session == by_owner
        return by_session

    assert seen(make(store_url, "read", owner="vision")) == {"vision"}
    assert seen(two) == {"speech"}
    assert seen(make(store_url, "read-all")) == seen(make(store_url, "admin")) == {"vision", "speech"}


def test_datasets_of_a_root_are_its_owners(
    live: Callable[..., Any], store_url: str, tmp_path: Path, make_dataset: Callable[[Path, int], None]
) -> None:
    for root in ("shared", "private"):
        (tmp_path / root).mkdir()
        make_dataset(tmp_path / root / f"{root}-data", 20)
    secrets = {name: make(store_url, "select", owner=name) for name in ("vision", "speech")}
    roots = [tmp_path / "shared", tmp_path / "private"]
    url = live(store=store_url, datasets=roots, dataset_owners={roots[1]: ["vision"]}).url
    for name, visible in (("vision", ["private-data", "shared-data"]), ("speech", ["shared-data"])):
        headers = {"Authorization": f"Bearer {secrets[name]}"}
        with httpx.Client(base_url=url, headers=headers) as http:
            assert http.get("/v1/datasets").json()["datasets"] == visible
            assert [line["name"] for line in http.get("/dashboard/datasets").json()["datasets"]] == visible
            asked = {"method": "random", "dataset": "private-data", "batch_size": 2}
            answers = [
                http.get("/v1/datasets/private-data"),
                http.get("/dashboard/datasets/private-data"),
                http.get("/dashboard/datasets/private-data/rows"),
                http.post("/v1/sessions", json=asked),
            ]
            hidden = ["there is no dataset" in answer.json().get("detail", "") for answer in answers]
            assert hidden == [name == "speech"] * 4
    with pytest.raises(ValueError, match="which is not among datasets"):
        Settings(datasets=roots[:1], dataset_owners={roots[1]: ["vision"]})


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


def test_a_server_from_its_start_to_its_end(
    serve: Callable[..., Any], live: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve(trusted_proxies='["127.0.0.1"]')
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
        f"{server.url}/v1/sessions",
        headers={"Authorization": "Bearer cur_abc_verysecret", "X-Request-ID": "mine", "X-Forwarded-For": "192.0.2.7"},
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
    assert (asked[0]["peer"], asked[0]["token"]) == ("192.0.2.7", None)
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
