"""Creation of sessions piece by piece: others commit meanwhile, and nothing is left of what broke off."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from curation.service.errors import Refusal
from curation.service.session.account import Account, Quota
from curation.service.session.caller import ANYONE, Caller
from curation.service.session.session import Report
from curation.service.session.spec import SessionSpec
from curation.service.store import SessionRow, Store
from curation.service.store.blobs import PART
from curation.service.store.records.creation import Contents
from curation.service.store.reports import Write
from curation.service.store.tables import blobs, reports, sessions

SPEC = SessionSpec(method="random", size=10_000, batch_size=4)
LARGE = {"plan": bytes(range(256)) * (4 * PART // 256) + b"end"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def row(id: str = "large", owner: str | None = None) -> SessionRow:
    return SessionRow(0, id, owner, 7, SPEC, 10_000, 0, 1.0)


def left(store: Store) -> list[int]:
    """How many rows there are of sessions, blobs and reports once all removals are done."""
    store.remover.wait()
    with store.engine.connect() as connection:
        counts = (select(func.count()).select_from(table) for table in (sessions, blobs, reports))
        return [connection.execute(count).scalar_one() for count in counts]


def losses(steps: int) -> Iterator[Report]:
    return (Report(0, step, np.full(4, step, np.float32)) for step in range(steps))


def test_a_large_session_is_stored_whole_while_others_commit(store: Store) -> None:
    small = store.create("small", ANYONE, SPEC, 10_000, {})
    assert small is not None
    seen: list[tuple[Any, int]] = []

    def between() -> Iterator[Report]:
        """Read by the creation, outside of its transactions for at most a piece's length."""
        for report in losses(20_000):
            if report.step % 5000 == 0:
                seen.append((store.session("large"), store.count_sessions()))
            yield report

    def report() -> None:
        for step in range(50):
            assert store.add_reports([Write(small.key, 0, [Report(0, step, np.zeros(4, np.float32))])]) == [()]
            committed.append(step)

    committed: list[int] = []
    thread = threading.Thread(target=report)
    thread.start()
    made = store.restore(ANYONE, row(), Contents(LARGE, reports=between(), choices={3: b"a choice"}, imported="abc"))
    thread.join()
    assert made is not None
    assert seen == [(None, 1)] * 4
    assert store.session("large") == made
    assert store.tables(made.key) == LARGE
    assert store.imported(made.key) == (7, "abc")
    stored = list(store.reports(made.key, 0, 20_000))
    assert [int(report.losses[0]) for report in stored] == list(range(20_000))
    assert len(committed) == 50


def test_what_a_killed_server_made_of_a_session_is_removed_by_the_next(url: str) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from tests.service.store.records.test_creation import *
def killed():
    yield from losses(20_000)
    os.kill(os.getpid(), signal.SIGKILL)
Store({url!r}).restore(ANYONE, row(), Contents(LARGE, reports=killed()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    following = Store(url)
    with following.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(reports)).scalar_one() > 1000
    assert (following.session("large"), following.count_sessions()) == (None, 0)
    following.own()
    assert left(following) == [0, 0, 0]
    assert following.create("large", ANYONE, SPEC, 10_000, {}) is not None
    following.close()


def test_nothing_is_left_of_a_session_whose_reports_are_refused(store: Store) -> None:
    def refused() -> Iterator[Report]:
        yield from losses(20_000)
        raise Refusal("bad-body", "the last report is none")

    with pytest.raises(Refusal, match="the last report"):
        store.restore(ANYONE, row(), Contents(LARGE, reports=refused()))
    assert left(store) == [0, 0, 0]
    assert store.restore(ANYONE, row(), Contents(reports=losses(3))) is not None
    assert store.restore(ANYONE, row(), Contents(LARGE)) is None
    assert left(store) == [1, 0, 3]


def test_of_two_replicas_that_make_one_session_one_does(database: Any) -> None:
    both = [Store(database.get_uri()) for _ in range(2)]
    meet = threading.Barrier(2)

    def create(store: Store) -> SessionRow | None:
        def reports() -> Iterator[Report]:
            yield from losses(10)
            meet.wait()

        return store.restore(ANYONE, row("contested"), Contents(LARGE, reports=reports()))

    with ThreadPoolExecutor() as threads:
        made = list(threads.map(create, both))
    assert sum(one is not None for one in made) == 1
    for store in both:
        store.remover.wait()
    assert left(both[0]) == [1, 5, 10]
    for store in both:
        store.close()


def test_an_owner_gets_no_more_sessions_by_making_them_at_once(store: Store) -> None:
    caller = Caller("one", frozenset({"select"}), account=Account("one", Quota(sessions=1)))
    meet = threading.Barrier(2)

    def create(id: str) -> Any:
        def reports() -> Iterator[Report]:
            meet.wait()
            yield from losses(3)

        try:
            return store.restore(caller, row(id, "one"), Contents(LARGE, reports=reports()))
        except Refusal as refusal:
            return refusal.kind

    with ThreadPoolExecutor() as threads:
        made = list(threads.map(create, ["first", "second"]))
    assert sum(one == "quota" for one in made) == 1
    assert left(store) == [1, 5, 3]
    with pytest.raises(Refusal, match="quota"):
        store.create("third", caller, SPEC, 10_000, LARGE)
    assert left(store) == [1, 5, 3]


def test_a_replica_that_starts_may_remove_what_another_makes_and_that_one_says_so(database: Any) -> None:
    store, starting = Store(database.get_uri()), Store(database.get_uri())

    def reports() -> Iterator[Report]:
        yield from losses(20_000)
        starting.own()
        starting.remover.wait()
        yield from losses(1)

    with pytest.raises(Refusal, match="rewound or deleted") as refused:
        store.restore(ANYONE, row("unlucky"), Contents(reports=reports()))
    assert refused.value.retry_after is not None
    assert store.session("unlucky") is None
    store.close()
    starting.close()
