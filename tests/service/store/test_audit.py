"""The audit trail: each act with who did it, in the transaction of the act, until it is old."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from curation.service.access.tokens import issue_token
from curation.service.client import Client
from curation.service.errors import Refusal
from curation.service.session.caller import ANYONE
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store import audit as trail
from curation.service.store.audit import prune_audit, read_audit, record
from curation.service.store.tables import audit

SPEC = SessionSpec(method="infobatch", size=10, batch_size=2, epochs=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/audit.db")
    yield store
    store.close()


def test_who_did_what_to_a_session(live: Callable[..., Any], store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="curation.service")
    made, secret = issue_token(store, "trainer", frozenset({"select"}), owner="vision")
    boss, admin = issue_token(store, "boss", frozenset({"admin"}), owner="operators")
    server = live(store=str(store.url))
    with Client(server.url, token=secret) as client:
        client.create_session("infobatch", size=10, batch_size=2, epochs=3, id="run")
        client.create_session("infobatch", size=10, batch_size=2, epochs=3, id="run")  # changes nothing
        client.step("run", 0)
        rewound = client.rewind("run", 0)
        client.restore(client.checkpoint("run"), id="copy")
    headers = {"Authorization": f"Bearer {admin}"}
    with httpx.Client(base_url=server.url, headers=headers) as http:
        deleted = http.delete("/v1/sessions/run", headers={"X-Request-ID": "the-deletion"})
        assert deleted.status_code == 204
        acts = http.get("/v1/audit", params={"session": "run"}).json()["acts"]
        assert [(act["act"], act["owner"], act["token"]) for act in acts] == [
            ("session.delete", "operators", boss.id),
            ("session.rewind", "vision", made.id),
            ("session.create", "vision", made.id),
        ]
        assert {act["peer"] for act in acts} == {"127.0.0.1"}
        assert acts[0]["request"] == "the-deletion"
        assert acts[1]["detail"] == {"step": 0, "generation": rewound.generation}
        page = http.get("/v1/audit", params={"limit": 2}).json()
        assert [act["act"] for act in page["acts"]] == ["session.delete", "session.import"]
        rest = http.get("/v1/audit", params={"before": page["next"], "owner": "vision"}).json()
        assert [act["act"] for act in rest["acts"]] == ["session.rewind", "session.create"]
        assert rest["next"] is None
        assert http.get("/v1/audit", headers={"Authorization": f"Bearer {secret}"}).status_code == 403
    server.stop()
    lines = [json.loads(line) for logged in caplog.records for line in getattr(logged, "lines", ())]
    (line,) = [line for line in lines if line.get("request") == "the-deletion"]
    assert (line["peer"], line["token"]) == ("127.0.0.1", boss.id)


def test_an_act_that_fails_leaves_no_trace(store: Store) -> None:
    row = store.create("a", ANYONE, SPEC, 10, {})
    assert row is not None
    assert store.create("a", ANYONE, SPEC, 10, {}) is None
    with pytest.raises(Refusal):
        store.rewind(row.key, 7, 0, 0, ANYONE)
    store.delete_session(row.key, ANYONE)
    store.delete_session(row.key, ANYONE)
    assert [entry.act for entry in read_audit(store)] == ["session.delete", "session.create"]


def test_old_acts_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "_AT_ONCE", 10)
    with store.writing() as connection:
        for number in range(64):
            record(connection, ANYONE, "session.create", str(number))
        connection.execute(update(audit).where(audit.c.key <= 33).values(at=time.time() - 40 * 86_400))
    assert prune_audit(store, 41) == 0
    assert prune_audit(store, 30) == 33
    assert [entry.session for entry in read_audit(store)] == [str(number) for number in reversed(range(33, 64))]
    monkeypatch.setattr(trail, "MAX_ROWS", 11)
    assert prune_audit(store, 30) == 20
    assert len(read_audit(store)) == 11
