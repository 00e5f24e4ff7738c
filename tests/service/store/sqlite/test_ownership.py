"""Ownership of a SQLite file: by whatever name, and only while it is there."""

import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import Client
from curation.service.store import Store
from curation.service.store.sqlite.ownership import StoreError
from tests.service.store.test_tables import FIRST


@pytest.fixture
def owner(tmp_path: Path) -> Any:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.own()
    yield store
    store.close()


@pytest.mark.parametrize("other", ["same", "symlink", "lock tidied away"])
def test_a_file_has_one_owner_whatever_it_is_called(owner: Store, tmp_path: Path, other: str) -> None:
    path = tmp_path / "store.db"
    if other == "symlink":
        (tmp_path / "link.db").symlink_to(path)
        path = tmp_path / "link.db"
    elif other == "lock tidied away":
        (tmp_path / "store.db.lock").unlink()
    second = Store(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="another server owns"):
        second.own()
    second.close()


def test_an_older_store_is_not_moved_on_under_the_server_that_uses_it(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text())
    with (tmp_path / "old.db.lock").open("w") as lock:  # as a server of release 0.1 has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another server owns"):
            Store(f"sqlite:///{path}")
    assert connection.execute("SELECT version FROM curation_schema").fetchone() == (1,)
    connection.close()


def test_a_new_store_is_its_owners_to_read(owner: Store, tmp_path: Path) -> None:
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["sqlite:///file:store.db?uri=true", "sqlite:///file::memory:?uri=true"])
def test_a_uri_of_sqlites_own_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="name the file itself"):
        Store(url)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_nothing_is_acknowledged_into_a_file_that_is_gone(
    live: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    server = live(store=f"sqlite:///{tmp_path}/store.db")
    report = [(0, np.zeros(4, np.float32))]
    with Client(server.url, patience=0) as client:
        session = client.create_session("random", size=100, batch_size=4).id
        client.report(session, report)
        if how == "replaced":
            shutil.copy(tmp_path / "store.db", tmp_path / "other.db")
            (tmp_path / "other.db").rename(tmp_path / "store.db")
        else:
            (tmp_path / "store.db").unlink()
        for _ in range(2):
            answer = httpx.post(
                f"{server.url}/v1/sessions/{session}/steps",
                json={"step": 2, "reports": [{"step": 1, "losses": [0, 0, 0, 0]}]},
            )
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:curation:problem:store-unavailable")
            assert "removed or replaced" in answer.json()["detail"]
        assert httpx.post(f"{server.url}/v1/sessions", json={"method": "random", "size": 9, "batch_size": 3}).is_error
        assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert [record.levelname for record in caplog.records if "was removed or replaced" in record.message] == [
        "CRITICAL"
    ]


def test_a_store_that_vanished_is_missed_at_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store(url)
    store.own()
    store.close()
    for file in tmp_path.glob("store.db*"):
        if not file.name.endswith(".lock"):
            file.unlink()
    with caplog.at_level(logging.ERROR):
        Store(url).close()
    assert "there was a store here before" in caplog.text
