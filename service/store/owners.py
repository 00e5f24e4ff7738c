"""Owners in the store: their quotas, their sessions, and how those change hands; blocking."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, text, update

from curation.service.errors import Refusal
from curation.service.session.account import Quota
from curation.service.session.caller import Caller
from curation.service.store.audit import record
from curation.service.store.tables import PRESENT, owners, sessions, tokens

if TYPE_CHECKING:
    from curation.service.store.store import Store


class OwnerUse(NamedTuple):
    """An owner: the quotas set for it (None: the server's default), its sessions, and its tokens that may be valid."""

    name: str
    quota: Quota
    sessions: int
    tokens: int


def read_quotas(store: "Store") -> dict[str, Quota]:
    """The quotas that were set, by owner."""
    with store.engine.connect() as connection:
        return {row.name: _quota(row) for row in connection.execute(select(owners))}


def set_quota(store: "Store", caller: Caller, owner: str, quota: Mapping[str, float | None]) -> Quota:
    """Set some of an owner's quotas (None: the server's default again); all of them as they now are."""
    with store.writing() as connection:
        if connection.execute(select(owners.c.name).where(owners.c.name == owner)).first() is None:
            connection.execute(insert(owners).values(name=owner))
        connection.execute(update(owners).where(owners.c.name == owner).values(name=owner, **quota))
        record(connection, caller, "owner.set", owner=owner, **quota)
        return _quota(connection.execute(select(owners).where(owners.c.name == owner)).one())


def list_owners(store: "Store") -> list[OwnerUse]:
    """Every owner that has a token, a session or a quota, by name."""
    valid = select(tokens.c.owner, func.count()).where(tokens.c.revoked.is_(None)).group_by(tokens.c.owner)
    made = select(sessions.c.owner, func.count()).where(sessions.c.owner.is_not(None)).group_by(sessions.c.owner)
    with store.engine.connect() as connection:
        quotas = {row.name: _quota(row) for row in connection.execute(select(owners))}
        token_counts: dict[str, int] = {name: count for name, count in connection.execute(valid)}  # noqa: C416
        session_counts: dict[str, int] = {name: count for name, count in connection.execute(made)}  # noqa: C416
    return [
        OwnerUse(name, quotas.get(name, Quota()), session_counts.get(name, 0), token_counts.get(name, 0))
        for name in sorted({*quotas, *token_counts, *session_counts})
    ]


def rename_owner(store: "Store", caller: Caller, old: str, new: str) -> tuple[int, int]:
    """Give an owner's sessions and tokens to another, which may be there already; how many of both.

    The quotas of ``new`` stand, where it has any.
    """
    with store.writing() as connection:
        moved = connection.execute(update(sessions).where(sessions.c.owner == old).values(owner=new)).rowcount
        given = connection.execute(update(tokens).where(tokens.c.owner == old).values(owner=new)).rowcount
        if connection.execute(select(owners.c.name).where(owners.c.name == new)).first() is None:
            connection.execute(update(owners).where(owners.c.name == old).values(name=new))
        else:
            connection.execute(delete(owners).where(owners.c.name == old))
        record(connection, caller, "owner.rename", old=old, new=new, sessions=moved, tokens=given)
    return moved, given


def count_ownerless(connection: Connection) -> int:
    """Sessions that were made without a token."""
    query = select(func.count()).select_from(sessions).where(sessions.c.owner.is_(None), PRESENT)
    return connection.execute(query).scalar_one()


def adopt_sessions(connection: Connection, caller: Caller, owner: str) -> int:
    """Give an owner the sessions that were made without a token; how many."""
    adopted = connection.execute(
        update(sessions).where(sessions.c.owner.is_(None), PRESENT).values(owner=owner)
    ).rowcount
    record(connection, caller, "owner.adopt", owner=owner, sessions=adopted)
    return adopted


def lock_quota(connection: Connection, caller: Caller) -> None:
    """Before a session is stored: let replicas that store one of the same owner wait for each other."""
    if caller.account is not None and connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:owner, 7246881))"), {"owner": caller.owner}
        )


def check_quota(connection: Connection, caller: Caller) -> None:
    """Before a session is stored, in the same transaction.

    Raises:
        Refusal: its owner has more than it may (``quota``).
    """
    most = None if caller.account is None else caller.account.quota.sessions
    if caller.account is None or most is None:
        return
    query = select(func.count()).select_from(sessions).where(sessions.c.owner == caller.owner)
    if connection.execute(query).scalar_one() >= most:
        raise Refusal(
            "quota",
            f"owner {caller.owner!r} has {most} sessions, as many as it may: delete some, or have the quota raised "
            "(curation owner set)",
            retry_after=60,
            limit="sessions",
        )


def _quota(row: Any) -> Quota:
    return Quota(row.sessions, row.requests_per_second, row.bytes_per_second)
