"""Checkpoints of SQLite: what was committed moves from the write-ahead log into the database file, beside the commits.

SQLite does so by itself, within the commit that fills the log's thousandth page: one in fifty would then wait for a
flush of the whole database. What was committed is on disk either way.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from sqlite3 import Connection, Error
from threading import Lock
from typing import Any

from sqlalchemy import Engine

from curation.service.logs import logger

BYTES_BETWEEN = 4 << 20
"""Bytes that are committed between two checkpoints."""
MAX_PAGES = 8192
"""Pages of the log (32 MiB) after which commits wait once, so that it starts anew instead of growing."""


class Checkpointer:
    """The checkpoints of one SQLite file, in a thread of their own.

    Args:
        engine: its connections.
        one_writer: held by whoever writes. SQLite's own lock is waited for in sleeps of up to 0.1 s.
    """

    def __init__(self, engine: Engine, one_writer: Lock) -> None:
        self._engine = engine
        self._one_writer = one_writer
        self._thread = ThreadPoolExecutor(1, "curation-backfill")
        self._running: Future[None] | None = None
        self._bytes = 0

    def committed(self, size: int) -> None:
        """Take note of a commit of so many bytes."""
        self._bytes += size
        if self._bytes >= BYTES_BETWEEN and (self._running is None or self._running.done()):
            self._bytes = 0
            self._running = self._thread.submit(self._checkpoint)

    def look(self) -> None:
        """Take note of a commit of unknown size, which may be large."""
        self.committed(BYTES_BETWEEN // 4)

    def wait(self) -> None:
        """Until the checkpoint under way is done."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Wait for the checkpoint under way."""
        self._thread.shutdown()

    def _checkpoint(self) -> None:
        pooled = self._engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            if _wal_checkpoint(connection, "PASSIVE") > MAX_PAGES:
                with self._one_writer, _impatient(connection):
                    _wal_checkpoint(connection, "RESTART")  # nothing where somebody reads: the next one will
        except Error:
            logger.exception("the write-ahead log was not moved; the next commits will try again")
        finally:
            pooled.close()


@contextmanager
def _impatient(connection: Connection) -> Iterator[None]:
    """Without waiting for other connections: for readers, while nobody could commit."""
    (before,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout=0").close()
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout={before}").close()


def _wal_checkpoint(connection: Connection, mode: str) -> int:
    """Pages in the log, after moving what that mode can."""
    _, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return int(pages)
