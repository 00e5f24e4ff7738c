"""Tokens in the store: a hash of each secret, whose it is, and how long it is good for; blocking."""

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from curation.service.session.caller import Caller
from curation.service.store.audit import record
from curation.service.store.tables import tokens

if TYPE_CHECKING:
    from curation.service.store.store import Store


class Token(NamedTuple):
    """A bearer token's record; the secret itself is not stored, only its SHA-256.

    Times are seconds since 1970: ``expires`` None is never, ``used`` is a minute late at most. Until ``old_until`` the
    secret before the last rotation is good, too.
    """

    id: str
    name: str
    hash: bytes
    scopes: frozenset[str]
    created: float
    revoked: float | None
    owner: str
    expires: float | None = None
    used: float | None = None
    old_hash: bytes | None = None
    old_until: float | None = None

    def ended(self, now: float) -> bool:
        """Whether it was revoked or has expired."""
        return self.revoked is not None or (self.expires is not None and self.expires <= now)


def add_token(
    connection: Connection,
    caller: Caller,
    name: str,
    hash: bytes,
    scopes: frozenset[str],
    owner: str | None = None,
    expires: float | None = None,
) -> Token:
    """Store a token's hash under a new id, which is also its owner where none is named."""
    id = secrets.token_hex(8)
    token = Token(id, name, hash, scopes, time.time(), None, owner or id, expires)
    connection.execute(insert(tokens).values(**{**token._asdict(), "scopes": " ".join(sorted(scopes))}))
    record(connection, caller, "token.create", **_facts(token))
    return token


def read_tokens(store: "Store") -> list[Token]:
    """All tokens, ended ones too, oldest first."""
    with store.engine.connect() as connection:
        return [_token(row) for row in connection.execute(select(tokens).order_by(tokens.c.created))]


def count_tokens(connection: Connection) -> int:
    """How many tokens there are, ended ones too."""
    return connection.execute(select(func.count()).select_from(tokens)).scalar_one()


def rotate_token(
    connection: Connection, caller: Caller, id: str, hash: bytes, old_until: float, expires: float | None
) -> Token | None:
    """Put a new secret's hash in place of a token's; None where no token of that id is valid.

    Args:
        connection: the transaction.
        caller: who does it.
        id: the token's.
        hash: SHA-256 of its new secret.
        old_until: until when the present secret stays good.
        expires: when the token ends from now on; None: as before.
    """
    row = connection.execute(select(tokens).where(tokens.c.id == id).with_for_update()).one_or_none()
    now = time.time()
    if row is None or _token(row).revoked is not None:
        return None
    token = _token(row)._replace(hash=hash, old_hash=row.hash, old_until=old_until)
    if expires is not None:
        token = token._replace(expires=expires)
    if token.ended(now):
        return None
    values = {name: getattr(token, name) for name in ("hash", "old_hash", "old_until", "expires")}
    connection.execute(update(tokens).where(tokens.c.id == id).values(**values))
    record(connection, caller, "token.rotate", **_facts(token), old_until=old_until)
    return token


def revoke_token(store: "Store", caller: Caller, id: str) -> bool:
    """Make a token invalid, old secrets too; False where there is none of that id, or it was revoked before."""
    with store.writing() as connection:
        done = connection.execute(
            update(tokens).where(tokens.c.id == id, tokens.c.revoked.is_(None)).values(revoked=time.time())
        )
        if done.rowcount:
            record(connection, caller, "token.revoke", id=id)
    return done.rowcount > 0


def note_use(store: "Store", used: Mapping[str, float]) -> None:
    """Note when tokens were last used: seconds since 1970 by their ids."""
    query = update(tokens).where(tokens.c.id == bindparam("token")).values(used=bindparam("at"))
    with store.writing() as connection:
        connection.execute(query, [{"token": id, "at": at} for id, at in sorted(used.items())])


def _facts(token: Token) -> dict[str, Any]:
    """What the audit trail says of a token."""
    scopes = " ".join(sorted(token.scopes))
    return {"id": token.id, "name": token.name, "of": token.owner, "scopes": scopes, "expires": token.expires}


def _token(row: Any) -> Token:
    return Token(**{**row._asdict(), "scopes": frozenset(row.scopes.split())})
