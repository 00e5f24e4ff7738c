"""Audit trail: who made, changed and deleted what. Rows are only added, and go when they are old.

Write one in the transaction of the act itself, so that neither is there without the other:

    with store.changing(key, generation) as connection:
        ...
        record(connection, caller, "session.resize", id, from_step=40, world_size=3)
"""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select

from curation.service.session.caller import Caller
from curation.service.store.tables import audit

if TYPE_CHECKING:
    from curation.service.store.store import Store

MAX_ROWS = 1_000_000
_AT_ONCE = 1000


class AuditEntry(NamedTuple):
    """One act. ``key`` rises with time, ``at`` is seconds since 1970, ``owner`` that of the token that did it."""

    key: int
    at: float
    act: str
    session: str | None
    owner: str | None
    token: str | None
    peer: str | None
    request: str | None
    detail: dict[str, Any]


def record(connection: Connection, caller: Caller, act: str, session: str | None = None, /, **detail: Any) -> None:
    """Note an act in the transaction that does it.

    Args:
        connection: the transaction.
        caller: who does it.
        act: a noun and a verb, such as ``session.delete``.
        session: the id of the session that is acted on.
        detail: further facts, as JSON takes them; never a secret.
    """
    values = {"at": time.time(), "act": act, "session": session, "detail": json.dumps(detail)}
    by = {"owner": caller.owner, "token": caller.token, "peer": caller.peer, "request": caller.request}
    connection.execute(insert(audit).values(**values, **by))


def read_audit(
    store: "Store", *, session: str | None = None, owner: str | None = None, before: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """Acts, newest first: on one session, by one owner's tokens, with keys below ``before``."""
    query = select(audit).order_by(audit.c.key.desc()).limit(limit)
    for column, value in ((audit.c.session, session), (audit.c.owner, owner)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(audit.c.key < before)
    with store.engine.connect() as connection:
        return [AuditEntry(**{**row._asdict(), "detail": json.loads(row.detail)}) for row in connection.execute(query)]


def prune_audit(store: "Store", days: float) -> int:
    """Forget acts older than so many days, and all but the newest :data:`MAX_ROWS`; how many went."""
    with store.engine.connect() as connection:
        old = connection.execute(
            select(func.max(audit.c.key)).where(audit.c.at < time.time() - days * 86_400)
        ).scalar_one()
        newest = connection.execute(select(func.max(audit.c.key))).scalar_one()
    last = max(old or 0, (newest or 0) - MAX_ROWS)
    going = select(audit.c.key).where(audit.c.key <= last).order_by(audit.c.key).limit(_AT_ONCE).scalar_subquery()
    pruned = 0
    while True:
        with store.writing() as connection:
            done = connection.execute(delete(audit).where(audit.c.key.in_(going))).rowcount
        pruned += done
        if done < _AT_ONCE:
            return pruned
