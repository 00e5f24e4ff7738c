"""Creation of sessions: what may be large of them is stored first, a piece at a time, between the commits of others.

Until all of it is there, the session's row stands under an id that nobody can name, marked as one that is being
removed: so it is, when the creation fails, or at the next start where the server was killed.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from curation.service.session.caller import Caller
from curation.service.session.segments import Segment
from curation.service.session.session import EpochRecord, Report
from curation.service.store.audit import record
from curation.service.store.blobs import CHOICE, IMPORTED, PACKED, PART, Bytes, blob_rows
from curation.service.store.database import Database, turns
from curation.service.store.maintenance.removal import GONE, Remover
from curation.service.store.owners import check_quota, lock_quota
from curation.service.store.records.rows import SessionRow, epoch_row, report_row
from curation.service.store.segments import segment_row
from curation.service.store.tables import WHOLE, blobs, epochs, reports, segments, sessions

_ROW_BYTES = 256
"""What a row takes beside its values, about."""

_Row = tuple[Table, dict[str, Any]]
"""A row of a table, whose session may still be without a key."""


class Contents(NamedTuple):
    """What belongs to a new session beside its row.

    ``tables`` are by name, ``state`` is the packed one of the epoch that the session starts at, ``choices`` are by
    step, ``reports`` are read as they are stored; ``imported`` is for :meth:`Sessions.imported`.
    """

    tables: Mapping[str, Bytes] = MappingProxyType({})
    records: Sequence[EpochRecord] = ()
    segments: Sequence[Segment] = ()
    state: Bytes | None = None
    reports: Iterable[Report] = ()
    choices: Mapping[int, Bytes] = MappingProxyType({})
    imported: str | None = None


def create(
    database: Database, remover: Remover, caller: Caller, row: SessionRow, contents: Contents, act: str
) -> SessionRow | None:
    """Store a session, with ``act`` in the audit trail, and return its row with a key; None where its id is taken.

    Raises:
        Refusal: its owner has as many sessions as it may, or ``contents.reports`` raised it.
    """
    left = _rows(row, contents)
    some, more = _take_some(left)
    with database.writing() as connection:
        if connection.execute(select(sessions.c.key).where(sessions.c.id == row.id)).first() is not None:
            return None
        check_quota(connection, caller)
        row = replace(row, key=_hide(connection, row))
        _store(connection, row.key, some)
        shown = not more and _show(connection, caller, row, act)
    try:
        for _ in turns():
            if not more:
                break
            some, more = _take_some(left)
            with database.changing(row.key, GONE) as connection:
                _store(connection, row.key, some)
                shown = not more and _show(connection, caller, row, act)
    finally:
        if not shown:
            remover.finish(row.key)
    return row if shown else None


def _hide(connection: Connection, row: SessionRow) -> int:
    """Store the row of what is no session yet; its key."""
    hidden = {"id": f":{secrets.token_hex(8)}", "generation": GONE, "cut": WHOLE}
    about = {"size": row.size, "base": row.base, "created": row.created, "digest": row.digest}
    query = insert(sessions).values(**hidden, **about, spec=row.spec.model_dump_json())
    key: int = connection.execute(query.returning(sessions.c.key)).scalar_one()
    return key


def _show(connection: Connection, caller: Caller, row: SessionRow, act: str) -> bool:
    """Make a session of it, now that its contents are there; False where another replica took its id meanwhile."""
    lock_quota(connection, caller)
    check_quota(connection, caller)
    values = {"id": row.id, "owner": row.owner, "generation": row.generation, "cut": None}
    try:
        with connection.begin_nested():
            connection.execute(update(sessions).where(sessions.c.key == row.key).values(values))
    except IntegrityError:
        return False
    record(connection, caller, act, row.id, method=row.spec.method, size=row.size)
    return True


def _take_some(left: Iterator[_Row]) -> tuple[list[_Row], bool]:
    """A few megabytes of rows, and whether there may be more."""
    size, some = 0, []
    for table, values in left:
        some.append((table, values))
        size += _ROW_BYTES + sum(len(value) for value in values.values() if isinstance(value, bytes))
        if size >= PART:
            return some, True
    return some, False


def _store(connection: Connection, key: int, some: Iterable[_Row]) -> None:
    for table, rows in groupby(some, lambda one: one[0]):
        connection.execute(insert(table), [{**values, "session": key} for _, values in rows])


def _rows(row: SessionRow, contents: Contents) -> Iterator[_Row]:
    """Every row that belongs to a session; made as they are stored."""
    key = row.key

    def of_blob(kind: str, number: int, data: Bytes) -> Iterator[_Row]:
        return ((blobs, values) for values in blob_rows(key, kind, number, data))

    for name, table in contents.tables.items():
        yield from of_blob(f"table:{name}", 0, table)
    for segment in contents.segments:
        yield segments, segment_row(key, segment)
    for epoch in contents.records:
        yield epochs, epoch_row(key, epoch)
    if contents.state is not None and row.base > 0:
        yield from of_blob(PACKED, row.base, contents.state)
    for report in contents.reports:
        yield reports, report_row(key, report)
    for step, choice in contents.choices.items():
        yield from of_blob(CHOICE, step, choice)
    if contents.imported is not None:
        yield from of_blob(IMPORTED, 0, f"{row.generation} {contents.imported}".encode())
