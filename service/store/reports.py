"""Reports of many requests on their way to a SQLite file: one statement, which is one transaction and one flush.

Written for the driver itself: each of its calls gives the interpreter away and waits to have it back, so a statement
for each row, or one more to begin and one to commit, would cost a busy server more than the disk does.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from sqlite3 import Connection, Error
from typing import Any, NamedTuple, cast

from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.exc import OperationalError

from curation.service.session.session import LOSS, Report
from curation.service.store.sqlite.checkpointer import Checkpointer

_ROWS = 128  # of five variables each: below the smallest limit that SQLite was ever built with


class Write(NamedTuple):
    """Reports of one session, valid while the session is of this generation."""

    key: int
    generation: int
    reports: Sequence[Report]


Ignored = Sequence[int]
"""Steps whose report is another than the one that came first, which stays."""


class ReportWriter:
    """Adds reports to a SQLite file, over a connection of its own; for one thread at a time."""

    def __init__(self, engine: Engine, checkpointer: Checkpointer) -> None:
        self._engine = engine
        self._pooled: PoolProxiedConnection | None = None
        self._checkpointer = checkpointer

    def add(self, writes: Sequence[Write]) -> list[Ignored | None]:
        """Store reports; on disk when this returns.

        A report that is there already stays as it is. Returns for each write which of its reports were others than
        those; None where its session is not of that generation (any more), and nothing of it was stored.

        Raises:
            sqlalchemy.exc.OperationalError: nothing was stored.
        """
        rows = [
            (write.key, write.generation, report.step, report.rank, report.losses.astype(LOSS, copy=False))
            for write in writes
            for report in write.reports
        ]
        try:
            connection = self._connection()
            added = _insert(connection, rows)
            self._checkpointer.committed(sum(losses.nbytes for *_, losses in rows))
            if added == len(rows) and all(write.reports for write in writes):
                return [()] * len(writes)
            # Some were there already, or their session has changed. Generations only rise, so looking now is safe.
            known = dict(_generations(connection, list({write.key for write in writes})))
            differing = set(_differing(connection, rows)) if added < len(rows) else set()
        except Error as error:
            self._drop()
            raise OperationalError("INSERT INTO reports", None, error) from error
        outcomes: list[Ignored | None] = []
        start = 0
        for write in writes:
            ignored = tuple(r.step for place, r in enumerate(write.reports, start) if place in differing)
            outcomes.append(ignored if known.get(write.key) == write.generation else None)
            start += len(write.reports)
        return outcomes

    def close(self) -> None:
        """Let go of the file."""
        self._drop()

    def _drop(self) -> None:
        """Close the connection, and forget what was not committed."""
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def _connection(self) -> Connection:
        self._pooled = self._pooled or self._engine.raw_connection()
        return cast(Connection, self._pooled.driver_connection)


def _insert(connection: Connection, rows: list[tuple[Any, ...]]) -> int:
    """How many rows were new, and of the generation they name."""
    if len(rows) <= _ROWS:
        return _insert_some(connection, rows) if rows else 0
    connection.execute("BEGIN IMMEDIATE")
    added = sum(_insert_some(connection, rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS))
    connection.execute("COMMIT")
    return added


def _insert_some(connection: Connection, rows: list[tuple[Any, ...]]) -> int:
    return connection.execute(_statement(len(rows)), [value for row in rows for value in row]).rowcount


@lru_cache(maxsize=_ROWS)
def _statement(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return (
        "INSERT INTO reports (session, step, rank, losses) SELECT column1, column3, column4, column5 "
        f"FROM (VALUES {values}) "
        "WHERE (SELECT generation FROM sessions WHERE key = column1) = column2 ON CONFLICT DO NOTHING"
    )


def _differing(connection: Connection, rows: list[tuple[Any, ...]]) -> Iterator[int]:
    """Places of the rows whose report is stored with other losses."""
    for start in range(0, len(rows), _ROWS):
        some = [(start + place, key, *rest) for place, (key, _, *rest) in enumerate(rows[start : start + _ROWS])]
        for (place,) in connection.execute(_comparison(len(some)), [value for row in some for value in row]):
            yield place


@lru_cache(maxsize=_ROWS)
def _comparison(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return (
        f"SELECT column1 FROM (VALUES {values}) JOIN reports ON session = column2 AND step = column3 "
        "AND rank = column4 WHERE losses <> column5"
    )


def _generations(connection: Connection, keys: list[int]) -> Iterator[tuple[int, int]]:
    for start in range(0, len(keys), _ROWS):
        some = keys[start : start + _ROWS]
        marks = ", ".join("?" * len(some))
        yield from connection.execute(f"SELECT key, generation FROM sessions WHERE key IN ({marks})", some)
