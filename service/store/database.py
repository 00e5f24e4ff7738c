"""Database under the store: which URLs are taken, how connections are made, and who owns a file."""

import fcntl
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from curation.errors import CurationError

_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000")


class StoreError(CurationError):
    """The store cannot be opened: its URL is wrong, or another server owns it."""


def checked_url(url: str) -> URL:
    """A store's URL, parsed.

    Raises:
        StoreError: it names no kind of database that is known, or one in memory.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"{url!r} is not a store URL: use sqlite:///file or postgresql+psycopg://...") from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise StoreError(
            f"a store on {parsed.get_backend_name()} is unknown: use sqlite:///file or postgresql+psycopg://..."
        )
    if parsed.database in (None, "", ":memory:"):
        raise StoreError("a store in memory would lose what it acknowledged: name a file, as in sqlite:///sessions.db")
    return parsed


def make_engine(url: URL) -> Engine:
    """Connections to a store. On SQLite a commit is on disk when it returns, and ``immediate`` transactions write."""
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, pool_size=8, pool_timeout=10, connect_args={"connect_timeout": 5})
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=8, pool_timeout=10, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def own_file(database: str) -> IO[str]:
    """Become the one server of a SQLite file, until what is returned is closed or the process ends.

    Raises:
        StoreError: another server has it.
    """
    lock = Path(f"{database}.lock").open("w")  # noqa: SIM115 (held for the life of the server)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StoreError(
            f"{database}: another server owns this store. Stop it, or use PostgreSQL for several replicas."
        ) from error
    return lock
