"""Tokens as they are made and rotated, without a server."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.service.access.tokens import TokenError, issue_token, renew_token
from curation.service.session.caller import ANYONE
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.audit import read_audit
from curation.service.store.tokens import read_tokens, revoke_token

SELECT = frozenset({"select"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/tokens.db")
    yield store
    store.close()


@pytest.mark.parametrize("owner", ["", " ", "a/b", "-a", "x" * 33, "a\n", "ü"])
def test_a_bad_owner_is_refused(store: Store, owner: str) -> None:
    with pytest.raises(TokenError, match="an owner's name has"):
        issue_token(store, "test", SELECT, owner=owner)
    assert read_tokens(store) == []


@pytest.mark.parametrize("lasts", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_time_is_refused(store: Store, lasts: float) -> None:
    with pytest.raises(TokenError):
        issue_token(store, "test", SELECT, lasts=lasts)
    token, _ = issue_token(store, "test", SELECT)
    with pytest.raises(TokenError):
        renew_token(store, token.id, grace=lasts - 1, lasts=None)


def test_only_a_valid_token_is_rotated(store: Store) -> None:
    token, _ = issue_token(store, "test", SELECT, owner="vision", lasts=0.01)
    time.sleep(0.02)
    for id in (token.id, "none"):
        with pytest.raises(TokenError, match="there is no valid token"):
            renew_token(store, id, grace=60)
    renewed, _ = renew_token(store, token.id, grace=0, lasts=60)
    assert (renewed.owner, renewed.scopes, renewed.created) == (token.owner, token.scopes, token.created)
    assert revoke_token(store, ANYONE, token.id)
    with pytest.raises(TokenError):
        renew_token(store, token.id, grace=60, lasts=60)


def test_adopted_or_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SessionSpec(method="random", size=10, batch_size=2)
    for id in ("a", "b", "removed"):
        row = store.create(id, ANYONE, spec, 10, {})
    monkeypatch.setattr(store.remover, "finish", lambda key: None)  # it is on its way
    store.delete_session(row.key, ANYONE)  # type: ignore[union-attr]
    with pytest.raises(TokenError, match="2 sessions that were made without a token"):
        issue_token(store, "test", SELECT)
    issue_token(store, "test", SELECT, owner="vision", adopt=False)
    assert store.owner_of("a") is None
    issue_token(store, "test", SELECT, owner="vision")  # nobody without a token is left to be shut out
    issue_token(store, "test", SELECT, owner="vision", adopt=True)
    assert (store.owner_of("a"), store.owner_of("b")) == ("vision", "vision")


def test_neither_store_nor_audit_trail_holds_a_secret(store: Store, tmp_path: Path) -> None:
    token, first = issue_token(store, "test", SELECT)
    _, second = renew_token(store, token.id, grace=60)
    assert [entry.act for entry in read_audit(store)] == ["token.rotate", "token.create"]
    rows = str(sqlite3.connect(tmp_path / "tokens.db").execute("select * from audit").fetchall())
    for bearer in (first, second):
        secret = bearer.split("_", 2)[2]
        assert secret not in rows
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert token.hash.hex() not in rows
