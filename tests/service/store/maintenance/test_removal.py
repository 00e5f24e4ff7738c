"""Removal in short transactions: seen at once, finished by whoever comes next."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from curation.service.client import Client, ServiceError
from curation.service.errors import Refusal
from curation.service.session.caller import ANYONE
from curation.service.session.session import Report
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.maintenance import removal
from curation.service.store.reports import Write
from curation.service.store.tables import blobs, reports, sessions

SPEC = SessionSpec(method="random", size=10_000, batch_size=4, world_size=10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


def filled(store: Store, id: str = "s", steps: int = 100) -> int:
    row = store.create(id, ANYONE, SPEC, 10_000, {"plan": b"x" * 100})
    assert row is not None
    losses = np.zeros(4, np.float32)
    for step in range(steps):
        store.add_reports([Write(row.key, 0, [Report(rank, step, losses) for rank in range(10)])])
    return row.key


def rows_of(store: Store, table: Any) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_removed_session_is_gone_at_once_and_its_rows_in_a_while(store: Store) -> None:
    key = filled(store)
    store.delete_session(key, ANYONE)
    assert store.session("s") is None
    assert store.session(f":{key}") is None
    assert (store.list_sessions(None, 0, 10), store.count_sessions()) == ([], 0)
    assert store.create("s", ANYONE, SPEC, 10_000, {}) is not None
    refused = store.add_reports(
        [Write(key, generation, [Report(0, 0, np.zeros(4))]) for generation in (0, removal.GONE)]
    )
    assert isinstance(refused[0], Refusal)
    store.remover.wait()
    assert (rows_of(store, reports), rows_of(store, blobs), rows_of(store, sessions)) == (0, 0, 1)


def test_what_a_killed_server_left_is_finished_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "SOME_REPORTS", 64)
    gone, rewound = filled(store, "gone"), filled(store, "rewound")
    with monkeypatch.context() as killed:
        killed.setattr(store.remover, "finish", lambda key: None)
        killed.setattr("curation.service.store.records.sessions.finish_removal", lambda database, key: None)
        store.delete_session(gone, ANYONE)
        assert store.rewind(rewound, 0, 40, 0, ANYONE) == 1
    row = store.session("rewound")
    assert row is not None
    assert row.generation == -1
    refused = store.add_reports([Write(rewound, 1, [Report(0, 50, np.zeros(4, np.float32))])])
    assert isinstance(refused[0], Refusal)
    following = Store(str(store.url))
    following.own()
    following.remover.wait()
    row = following.session("rewound")
    assert row is not None
    assert row.generation == 1
    assert following.progress(rewound) == dict.fromkeys(range(10), (40, 39))
    assert rows_of(following, reports) == 400
    following.close()


def test_a_session_that_is_deleted_while_it_is_rewound_does_not_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = filled(store)  # of generation 0, as those of an older release
    real = removal.turns

    def turns(stopping: threading.Event | None) -> Iterator[None]:
        monkeypatch.undo()
        for number, _ in enumerate(real(stopping)):
            if number == 1:
                store.delete_session(key, ANYONE)
            yield

    monkeypatch.setattr(removal, "turns", turns)
    store.rewind(key, 0, 40, 0, ANYONE)
    store.remover.finish(key)
    store.remover.wait()
    assert (rows_of(store, sessions), rows_of(store, reports)) == (0, 0)


def test_others_commit_while_a_large_session_is_rewound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "SOME_REPORTS", 20)
    large, small = filled(store, "large"), filled(store, "small", 1)
    between: list[int] = []

    def report() -> None:
        for step in range(1, 20):
            store.add_reports([Write(small, 0, [Report(0, step, np.zeros(4, np.float32))])])
            between.append(rows_of(store, reports))

    thread = threading.Thread(target=report)
    thread.start()
    store.rewind(large, 0, 0, 0, ANYONE)
    thread.join()
    assert any(10 + 20 < rows < 1000 for rows in between)
    assert rows_of(store, reports) == 10 + 19


def test_a_rewind_that_was_killed_is_finished_when_its_session_is_asked_for(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = client.create_session("infobatch", size=8, batch_size=4, epochs=2).id
        first = client.step(session, 0).indices
        client.report(session, [(step, np.arange(4, dtype=np.float32)) for step in range(2)])
        second = client.step(session, 2).indices
        store, manager = server.app.state.service.store, server.app.state.service.sessions
        row = store.session(session)
        with pytest.MonkeyPatch.context() as killed:
            killed.setattr("curation.service.store.records.sessions.finish_removal", lambda database, key: None)
            store.rewind(row.key, row.generation, 1, 0, ANYONE)
        manager.evict(session)
        with pytest.raises(ServiceError, match="stale-generation"):
            client.step(session, 1, generation=row.generation)
        assert client.session(session).generation == row.generation + 1
        with pytest.raises(ServiceError, match="missing-reports"):
            client.step(session, 2)
        assert np.array_equal(client.step(session, 0).indices, first)
        client.report(session, [(1, np.arange(4, dtype=np.float32))])
        assert np.array_equal(client.step(session, 2).indices, second)
