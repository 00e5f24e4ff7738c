"""Removal of what may be large, in short transactions: sessions, reports after a rewind, states of earlier epochs.

What is to go is marked in one short transaction and cannot be seen from then on; then it is removed a little at a
time, between the commits of others. A server that is killed meanwhile goes on with it at its next start.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, text, tuple_, update
from sqlalchemy.exc import DBAPIError

from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.store.blobs import CHOICE, PACKED
from curation.service.store.database import Database, turns
from curation.service.store.records.states import KIND
from curation.service.store.tables import WHOLE, blobs, epochs, reports, sessions

GONE = -(1 << 31)
"""The generation of a session that is removed as a whole: nobody can name it, and no rewind has it while it removes."""
SOME_REPORTS = 256
SOME_BYTES = 2 << 20
FREE_PAGES = 1 << 13
"""Free pages that a file keeps for what comes next: 32 MiB."""
_SOME_PAGES = 512


class Remover:
    """Removals that nobody waits for, one at a time in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, "curation-remover")
        self._stopping = threading.Event()

    def resume(self) -> None:
        """Go on with what a server that was killed left."""
        query = select(sessions.c.key).where(sessions.c.cut.is_not(None)).order_by(sessions.c.key)
        with self._database.engine.connect() as connection:
            for key in connection.execute(query).scalars():
                self.finish(key)

    def finish(self, key: int) -> None:
        """Remove what is marked of a session, some time."""
        self._later(lambda: finish_removal(self._database, key, self._stopping), key)

    def remove_states(self, key: int) -> None:
        """Remove the states of a session that are of no use any more, some time."""
        self._later(lambda: _remove_states(self._database, key, self._stopping), key)

    def remove_reports(self, key: int, end: int) -> None:
        """Remove the reports of a session before a step, some time."""
        self._later(lambda: _remove_before(self._database, key, end, self._stopping), key)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Stop between two transactions."""
        self._stopping.set()
        self._thread.shutdown(cancel_futures=True)

    def _later(self, work: Callable[[], None], key: int) -> None:
        def run() -> None:
            try:
                work()
                shrink(self._database, self._stopping)
            except (DBAPIError, Refusal):
                logger.exception("session %d was not removed whole; the next start goes on with it", key)

        if not self._stopping.is_set():
            self._thread.submit(run)


def finish_removal(database: Database, key: int, stopping: threading.Event | None = None) -> None:
    """Remove what is marked of a session, from where it stands; nothing where nothing is. Blocking."""
    query = select(sessions.c.generation, sessions.c.cut).where(sessions.c.key == key)
    with database.engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    if row is None or row.cut is None:
        return
    try:
        for _ in turns(stopping):
            with database.changing(key, row.generation) as connection:
                if _remove_some(connection, key, row.cut):
                    continue
                if row.cut == WHOLE:
                    connection.execute(delete(sessions).where(sessions.c.key == key))
                else:
                    values = {"generation": -row.generation, "cut": None}
                    connection.execute(update(sessions).where(sessions.c.key == key).values(values))
                return
    except Refusal as refusal:
        if refusal.kind != "session-changed":  # else another replica was faster
            raise


def shrink(database: Database, stopping: threading.Event | None = None, free_pages: int = FREE_PAGES) -> None:
    """Give pages that are free back to the file system, where the file was made so that it can, down to some."""
    if database.shared:
        return
    with database.engine.connect() as connection:
        free = connection.execute(text("PRAGMA freelist_count")).scalar_one()
        incremental = connection.execute(text("PRAGMA auto_vacuum")).scalar_one() == 2
    if not incremental:
        return
    for _ in turns(stopping):
        if free <= free_pages:
            return
        with database.writing() as connection:
            # A row without columns for each page, which SQLAlchemy takes for no rows, and stops after the first.
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA incremental_vacuum({_SOME_PAGES})").fetchall()
        free -= _SOME_PAGES


def _remove_before(database: Database, key: int, end: int, stopping: threading.Event) -> None:
    for _ in turns(stopping):
        with database.writing() as connection:
            if not _remove_some_reports(connection, reports.c.session == key, reports.c.step < end):
                return


def _remove_states(database: Database, key: int, stopping: threading.Event) -> None:
    """Remove states that no epoch's row names, of epochs that are open, and packed ones of earlier epochs."""
    newest = select(func.max(epochs.c.number)).where(epochs.c.session == key)
    base = select(sessions.c.base).where(sessions.c.key == key)
    with database.engine.connect() as connection:
        last, first = connection.execute(newest).scalar_one(), connection.execute(base).scalar_one_or_none()
        if last is None or first is None:
            return
        named = set(connection.execute(select(epochs.c.state).where(epochs.c.session == key)).scalars())
        query = select(blobs.c.kind, blobs.c.number, blobs.c.part).where(
            blobs.c.session == key, blobs.c.kind.like(f"{PACKED}%"), blobs.c.number <= last
        )
        unnamed = [
            row
            for row in connection.execute(query)
            if (row.kind == PACKED and first < row.number < last - 1)
            or (row.kind != PACKED and row.kind.removeprefix(KIND).partition(":")[0] not in named)
        ]
    for _, row in zip(turns(stopping), unnamed, strict=False):
        with database.writing() as connection:
            connection.execute(
                delete(blobs).where(
                    blobs.c.session == key,
                    blobs.c.kind == row.kind,
                    blobs.c.number == row.number,
                    blobs.c.part == row.part,
                )
            )


def _remove_some(connection: Connection, key: int, cut: int) -> bool:
    """Remove a few rows of a session that are marked; False where there are none left."""
    if _remove_some_reports(connection, reports.c.session == key, reports.c.step >= cut):
        return True
    newest = select(func.coalesce(func.max(epochs.c.number), 0)).where(epochs.c.session == key).scalar_subquery()
    after_cut = or_(
        and_(blobs.c.kind.like(f"{CHOICE}%"), blobs.c.number >= cut),
        and_(blobs.c.kind.like(f"{PACKED}%"), blobs.c.number > newest),
    )
    parts = select(blobs.c.kind, blobs.c.number, blobs.c.part).where(blobs.c.session == key).limit(1)
    if cut != WHOLE:
        parts = parts.where(after_cut)
    rows = connection.execute(parts).all()
    for row in rows:
        connection.execute(
            delete(blobs).where(
                blobs.c.session == key, blobs.c.kind == row.kind, blobs.c.number == row.number, blobs.c.part == row.part
            )
        )
    return bool(rows)


def _remove_some_reports(connection: Connection, session: ColumnElement[bool], which: ColumnElement[bool]) -> bool:
    """Remove a few megabytes of reports; False where there are none left."""
    size = connection.execute(select(func.length(reports.c.losses)).where(session, which).limit(1)).scalar()
    if size is None:
        return False
    some = select(reports.c.step, reports.c.rank).where(session, which).order_by(reports.c.step, reports.c.rank)
    some = some.limit(max(1, min(SOME_REPORTS, SOME_BYTES // max(size, 1))))
    connection.execute(delete(reports).where(session, tuple_(reports.c.step, reports.c.rank).in_(some)))
    return True
