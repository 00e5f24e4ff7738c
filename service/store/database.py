"""Database under the store: which URLs are taken, how connections are made, and who writes when."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from curation.service.errors import Refusal
from curation.service.store.sqlite.checkpointer import Checkpointer
from curation.service.store.sqlite.ownership import OwnedFile, StoreError
from curation.service.store.tables import heartbeat, migrate, sessions

_LOG_BYTES = 64 << 20
_PAUSE = 0.05
_PRAGMAS = (
    "auto_vacuum=INCREMENTAL",  # of a new file; an older one gets it by `curation store vacuum`
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=10000",
    "wal_autocheckpoint=0",  # the checkpointer does it, beside the commits
    f"journal_size_limit={_LOG_BYTES}",
)


class Database:
    """Connections of one store, one writer at a time on SQLite, and the ownership of its file.

    Args:
        url: ``sqlite:///file`` or ``postgresql+psycopg://user@host/database``.

    Raises:
        StoreError: the URL is not understood, or the store is an older release's and a server of that one uses it.
        StoreVersionError: a newer release wrote the store.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        self.shared = self.url.get_backend_name() == "postgresql"
        self._file = None if self.shared else OwnedFile(Path(str(self.url.database)))
        self.engine = make_engine(self.url)
        self._writes = self.engine.execution_options(immediate=True)
        self.one_writer = threading.Lock()
        self.checkpointer = Checkpointer(self.engine, self.one_writer)
        self._others = threading.Lock()
        migrate(self._writes, nullcontext if self._file is None else self._file.owned)

    def own(self) -> None:
        """Become the one server of a SQLite file, and go on with what an earlier one left; see :meth:`take_file`."""
        self.take_file()

    def take_file(self) -> None:
        """Be the only one of those who would own a SQLite file; nothing to do where stores are shared.

        Raises:
            StoreError: another server has it.
        """
        if self._file is not None:
            self._file.own()

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Let go of all connections, and of the file."""
        self.checkpointer.close()
        self.engine.dispose()
        if self._file is not None:
            self._file.close()

    def ping(self) -> None:
        """Raise where the store takes no writes, or its file is gone."""
        query = self.upsert(heartbeat).values(id=0, at=time.time())
        with self.writing() as connection:
            connection.execute(query.on_conflict_do_update(index_elements=["id"], set_={"at": query.excluded.at}))

    def check_file(self) -> None:
        """Refuse to acknowledge what was written to a file that is not the store's any more.

        Raises:
            Refusal: the file was removed or replaced while this server owned it.
        """
        if self._file is not None:
            self._file.check()

    @contextmanager
    def changing(self, key: int, generation: int) -> Iterator[Connection]:
        """A transaction that changes one session; others that do wait.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.writing() as connection:
            self.lock_generation(connection, key, generation)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction; on SQLite one at a time in this process, which is fairer than its busy handler.

        Reports, which take ``one_writer`` alone, wait for one of these at most, however many there are.
        """
        if self.shared:
            with self._writes.begin() as connection:
                yield connection
            return
        with self._others, self.one_writer:
            with self._writes.begin() as connection:
                yield connection
            self.check_file()
            self.checkpointer.look()

    def check_generation(self, key: int, generation: int) -> None:
        """Refuse a session that was rewound or deleted since it was of this generation."""
        query = select(sessions.c.generation).where(sessions.c.key == key)
        with self.engine.connect() as connection:
            if connection.execute(query).scalar_one_or_none() != generation:
                raise outdated()

    def lock_generation(self, connection: Connection, key: int, generation: int) -> None:
        """Refuse to go on in a transaction where the session is not of that generation any more."""
        query = select(sessions.c.generation).where(sessions.c.key == key)
        stored = connection.execute(query.with_for_update() if self.shared else query).scalar_one_or_none()
        if stored != generation:
            raise outdated()

    def upsert(self, table: Any) -> Any:
        """The ``insert`` that knows conflicts. PostgreSQL's takes long to import: only who has one pays."""
        if self.shared:
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        return insert(table)


def turns(stopping: threading.Event | None = None) -> Iterator[None]:
    """Turns to write in, as long apart as they take, until ``stopping``: a lock in Python is not fair."""
    while stopping is None or not stopping.is_set():
        begin = time.monotonic()
        yield
        time.sleep(min(time.monotonic() - begin, _PAUSE))


def outdated() -> Refusal:
    """The answer to a request whose session is not what it was."""
    return Refusal(
        "session-changed", "the session was rewound or deleted while this request ran: ask again", retry_after=0.1
    )


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
    if str(parsed.database).startswith("file:") or "uri" in parsed.query:
        raise StoreError(
            f"{url!r} is a URI of SQLite's own, which may name memory or leave out locks: name the file itself, as in "
            "sqlite:///sessions.db"
        )
    return parsed


def make_engine(url: URL) -> Engine:
    """Connections to a store. On SQLite a commit is on disk when it returns, and ``immediate`` transactions write."""
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, pool_size=8, pool_timeout=10, connect_args={"connect_timeout": 5})
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
