"""Checkpoints of SQLite: what was committed moves from the write-ahead log into the database file, beside the commits.

SQLite does so by itself, within the commit that fills the log's thousandth page: one in fifty would then wait for a
flush of the whole database. What was committed is on disk either way.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from sqlite3 import Connection, Error
from typing import Any

from sqlalchemy import Engine

from curation.service.logs import logger

BYTES_BETWEEN = 4 << 20
"""Bytes that are committed between two checkpoints."""
MAX_PAGES = 8192
"""Pages of the log (32 MiB) after which commits wait once, so that it starts anew instead of growing."""


class Checkpointer:
    """The checkpoints of one SQLite file, in a thread of their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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

    def close(self) -> None:
        """Wait for the checkpoint under way."""
        self._thread.shutdown()

    def _checkpoint(self) -> None:
        pooled = self._engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            if _wal_checkpoint(connection, "PASSIVE") > MAX_PAGES:
                _wal_checkpoint(connection, "RESTART")
        except Error:
            logger.exception("the write-ahead log was not moved; the next commits will try again")
        finally:
            pooled.close()


def _wal_checkpoint(connection: Connection, mode: str) -> int:
    """Pages in the log, after moving what that mode can."""
    _, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return int(pages)
