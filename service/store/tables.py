"""Tables of the store, version by version. A store of a newer version is refused, one of an older is moved on.

Only add to :data:`MIGRATIONS`, and to the tables the same: an entry that was released never changes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    or_,
    select,
    text,
)

from curation.errors import CurationError

metadata = MetaData()
_KEY = BigInteger().with_variant(Integer, "sqlite")

schema = Table("curation_schema", metadata, Column("version", Integer, nullable=False))

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
    Column("owner", String(32), nullable=False, server_default=""),
    Column("expires", Float),
    Column("used", Float),
    Column("old_hash", LargeBinary),
    Column("old_until", Float),
)

owners = Table(
    "owners",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("sessions", BigInteger),
    Column("requests_per_second", Float),
    Column("bytes_per_second", Float),
)

audit = Table(
    "audit",
    metadata,
    Column("key", _KEY, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("act", String(40), nullable=False),
    Column("session", String(64), index=True),
    Column("owner", String(32)),
    Column("token", String(32)),
    Column("peer", String(100)),
    Column("request", String(64)),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    Column("key", _KEY, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("owner", String(32), index=True),
    Column("generation", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("base", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float),  # about when it was used last; null: not since it was created
    Column("cut", BigInteger),  # what is being removed: reports from this step on, or (-1) all of it
    Column("digest", String(32)),
    Column("last_rewind", String(64)),
    sqlite_autoincrement=True,  # a key that was deleted never names another session
)

WHOLE = -1
"""``sessions.cut`` of what is being removed as a whole, or not whole yet."""
PRESENT = or_(sessions.c.cut.is_(None), sessions.c.cut != WHOLE)
"""Whether a row of the table is a session."""

epochs = Table(
    "epochs",
    metadata,
    Column("session", _KEY, ForeignKey("sessions.key", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("first_step", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("reweighted", BigInteger, nullable=False),
    Column("missing", LargeBinary, nullable=False),
    Column("state", String(16)),  # which of the blobs are its state; null: those of the kind "state"
)

blobs = Table(
    "blobs",
    metadata,
    Column("session", _KEY, ForeignKey("sessions.key", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(40), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

reports = Table(
    "reports",
    metadata,
    Column("session", _KEY, ForeignKey("sessions.key", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("losses", LargeBinary, nullable=False),
)

segments = Table(
    "segments",
    metadata,
    Column("session", _KEY, ForeignKey("sessions.key", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("first_step", BigInteger, primary_key=True),
    Column("steps", BigInteger, nullable=False),
    Column("world_size", Integer, nullable=False),
    Column("replaced", BigInteger, nullable=False),
    Column("rows_left", LargeBinary, nullable=False),
)

heartbeat = Table(
    "heartbeat",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
)


def _heartbeat(connection: Connection) -> None:
    """The row that servers write to see that the store takes writes."""
    heartbeat.create(connection)


def _add_owners(connection: Connection) -> None:
    """Owners, their quotas and the audit trail. A token that was there owns what it made: it is its own owner."""
    sqlite = connection.dialect.name == "sqlite"
    blob, key = ("BLOB", "INTEGER PRIMARY KEY AUTOINCREMENT") if sqlite else ("BYTEA", "BIGSERIAL PRIMARY KEY")
    for line in (
        "ALTER TABLE tokens ADD COLUMN owner VARCHAR(32) DEFAULT '' NOT NULL",
        "ALTER TABLE tokens ADD COLUMN expires FLOAT",
        "ALTER TABLE tokens ADD COLUMN used FLOAT",
        f"ALTER TABLE tokens ADD COLUMN old_hash {blob}",
        "ALTER TABLE tokens ADD COLUMN old_until FLOAT",
        "UPDATE tokens SET owner = id",
        "CREATE INDEX ix_sessions_owner ON sessions (owner)",
        "CREATE TABLE owners (name VARCHAR(32) PRIMARY KEY NOT NULL, sessions BIGINT, requests_per_second FLOAT, "
        "bytes_per_second FLOAT)",
        f"CREATE TABLE audit (key {key} NOT NULL, at FLOAT NOT NULL, act VARCHAR(40) NOT NULL, session VARCHAR(64), "
        "owner VARCHAR(32), token VARCHAR(32), peer VARCHAR(100), request VARCHAR(64), detail TEXT NOT NULL)",
        "CREATE INDEX ix_audit_at ON audit (at)",
        "CREATE INDEX ix_audit_session ON audit (session)",
    ):
        connection.execute(text(line))


def _segments(connection: Connection) -> None:
    """How sessions were resized."""
    segments.create(connection)


def _states_and_removals(connection: Connection) -> None:
    """Names of states, which are stored in parts; when sessions were used; what of them is being removed."""
    connection.execute(text("ALTER TABLE sessions ADD COLUMN used FLOAT"))
    connection.execute(text("ALTER TABLE sessions ADD COLUMN cut BIGINT"))
    connection.execute(text("ALTER TABLE epochs ADD COLUMN state VARCHAR(16)"))


def _identities(connection: Connection) -> None:
    """Sessions know what they were created from, and which request rewound them last."""
    connection.execute(text("ALTER TABLE sessions ADD COLUMN digest VARCHAR(32)"))
    connection.execute(text("ALTER TABLE sessions ADD COLUMN last_rewind VARCHAR(64)"))


MIGRATIONS: Sequence[Callable[[Connection], None]] = (
    _heartbeat,
    _add_owners,
    _segments,
    _identities,
    _states_and_removals,
)
"""``MIGRATIONS[v - 1]`` takes a store of version v to v + 1. A new store is made as the tables above have it."""
VERSION = 1 + len(MIGRATIONS)
_PATIENCE = 5


class StoreVersionError(CurationError):
    """The store belongs to another release."""


def migrate(engine: Engine, owned: Callable[[], AbstractContextManager[None]]) -> None:
    """Bring a store to this release's version; several processes may try at once.

    Args:
        engine: connections to it.
        owned: keeps servers away, whose release may be the one that the store is moved on from.

    Raises:
        StoreVersionError: the store is of a newer release.
        CurationError: ``owned`` raised it, and the store is not of this version.
    """
    until = time.monotonic() + _PATIENCE
    while not _is_current(engine):
        try:
            with owned():
                _move_on(engine)
        except CurationError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)  # whoever has it may be doing the same


def _is_current(engine: Engine) -> bool:
    with engine.connect() as connection:
        if not inspect(connection).has_table(schema.name):
            return False
        version = connection.execute(select(schema.c.version)).scalar_one_or_none()
    if version is not None and version > VERSION:
        raise StoreVersionError(
            f"{engine.url.render_as_string(hide_password=True)}: a store of version {version}, and this release "
            f"reads versions up to {VERSION}. Install the release that wrote it, or name another store."
        )
    return version == VERSION


def _move_on(engine: Engine) -> None:
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7246881150341)"))
        if not inspect(connection).has_table(schema.name):
            metadata.create_all(connection)
            connection.execute(schema.insert().values(version=VERSION))
            return
        version = connection.execute(select(schema.c.version)).scalar_one()
        if version >= VERSION:
            return
        for step in MIGRATIONS[version - 1 :]:
            step(connection)
        connection.execute(schema.update().values(version=VERSION))
