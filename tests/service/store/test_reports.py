"""Reports on their way to a SQLite file: in groups of any size, of sessions that may have changed meanwhile."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from curation.service.errors import Refusal
from curation.service.session.caller import ANYONE
from curation.service.session.session import Report
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.reports import Write
from curation.service.store.sqlite import checkpointer
from curation.service.store.tables import reports

SPEC = SessionSpec(method="random", size=100, batch_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


def new_session(store: Store, id: str) -> int:
    row = store.create(id, ANYONE, SPEC, 100, {})
    assert row is not None
    return row.key


def report(step: int, value: float, rank: int = 0) -> Report:
    return Report(rank, step, np.full(4, value, np.float32))


def stored(store: Store, key: int) -> dict[tuple[int, int], float]:
    return {(one.rank, one.step): float(one.losses[0]) for one in store.reports(key, 0, 2**62)}


@pytest.mark.parametrize("count", [1, 128, 129, 300])
def test_a_group_of_any_size_is_stored_whole(store: Store, count: int) -> None:
    key = new_session(store, "s")
    writes = [Write(key, 0, [report(step, step)]) for step in range(count - 1)] + [Write(key, 0, [report(9999, 1)])]
    assert store.add_reports(writes) == [()] * count
    assert stored(store, key) == {(0, step): step for step in range(count - 1)} | {(0, 9999): 1}


def test_the_first_report_counts_also_within_a_group(store: Store) -> None:
    key = new_session(store, "s")
    group = [Write(key, 0, [report(0, 1), report(0, 2)]), Write(key, 0, [report(0, 3), report(0, 1)])]
    assert store.add_reports(group) == [(0,), (0,)]
    assert store.add_reports([Write(key, 0, [report(0, 4), report(1, 5)])]) == [(0,)]
    assert store.add_reports([Write(key, 0, [report(1, 5), report(0, 1)])]) == [()]
    assert stored(store, key) == {(0, 0): 1, (0, 1): 5}


def test_a_session_that_changed_hinders_its_own_reports_only(store: Store) -> None:
    good, rewound, gone = (new_session(store, id) for id in ("good", "rewound", "gone"))
    assert store.rewind(rewound, 0, 0, 0, ANYONE) == 1
    store.delete_session(gone, ANYONE)
    outcomes = store.add_reports(
        [
            Write(rewound, 0, [report(0, 1)]),
            Write(good, 0, [report(0, 2)]),
            Write(gone, 0, [report(0, 3)]),
            Write(rewound, 1, [report(0, 4)]),
            Write(good, 0, []),
        ]
    )
    assert [isinstance(one, Refusal) and one.kind == "session-changed" for one in outcomes] == [
        *(True, False, True, False, False)
    ]
    assert [stored(store, key) for key in (good, rewound, gone)] == [{(0, 0): 2}, {(0, 0): 4}, {}]


def test_what_fails_stores_nothing_and_the_next_group_goes_on(store: Store) -> None:
    key = new_session(store, "s")
    with sqlite3.connect(str(store.url.database), isolation_level=None) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON reports WHEN NEW.step = 150 BEGIN SELECT RAISE(ABORT, 'x'); END"
        )
        with pytest.raises(DBAPIError):
            store.add_reports([Write(key, 0, [report(step, 1)]) for step in range(200)])
        other.execute("DROP TRIGGER full")
    other.close()
    assert stored(store, key) == {}
    assert store.add_reports([Write(key, 0, [report(150, 1)])]) == [()]
    assert stored(store, key) == {(0, 150): 1}


def test_the_log_is_moved_and_starts_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "MAX_PAGES", 64)
    key, log = new_session(store, "s"), Path(f"{store.url.database}-wal")
    losses = np.zeros(4096, np.float32)
    for step in range(100):
        assert store.add_reports([Write(key, 0, [Report(0, step, losses)])]) == [()]
        if step % 20 == 19:
            store.checkpointer.committed(checkpointer.BYTES_BETWEEN)
            store.checkpointer.wait()
    assert log.stat().st_size < 100 * losses.nbytes / 2
    assert len(stored(store, key)) == 100


def test_a_log_that_somebody_reads_for_long_holds_up_no_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "MAX_PAGES", -1)
    key = new_session(store, "s")
    with store.engine.connect() as reader:
        reader.execute(select(reports.c.step)).all()
        assert store.add_reports([Write(key, 0, [report(0, 1)])]) == [()]
        store.checkpointer.committed(checkpointer.BYTES_BETWEEN)
        # With SQLite's own patience, ten seconds, this would be over before the other.
        with ThreadPoolExecutor() as threads:
            moved, added = (
                threads.submit(store.checkpointer.wait),
                threads.submit(store.add_reports, [Write(key, 0, [report(1, 1)])]),
            )
            assert added.result(timeout=5) == [()]
            moved.result(timeout=5)
    assert stored(store, key) == {(0, 0): 1, (0, 1): 1}
