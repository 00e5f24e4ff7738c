"""Bearer tokens, made and rotated: ``cur_<id>_<secret>``. The store keeps a SHA-256 of the secret, 256 random bits."""

import hashlib
import re
import secrets
import time
from collections.abc import Mapping

from curation.errors import CurationError
from curation.service.session.caller import ANYONE, Caller
from curation.service.store import Store, Token
from curation.service.store.owners import adopt_sessions, count_ownerless
from curation.service.store.tokens import add_token, count_tokens, rotate_token

SCOPES: Mapping[str, str] = {
    "read": "look at the owner's sessions, at datasets and metrics",
    "read-all": "look at everybody's sessions and metrics, and change nothing",
    "select": "read; and create sessions, take steps, use /v1/select",
    "admin": "select and read-all; and change everybody's sessions, tokens and quotas",
}
IMPLIED: Mapping[str, frozenset[str]] = {
    "read": frozenset({"read"}),
    "read-all": frozenset({"read", "read-all"}),
    "select": frozenset({"read", "select"}),
    "admin": frozenset(SCOPES),
}
OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,31}")
MAX_NAME = 200


class TokenError(CurationError, ValueError):
    """A token cannot be made or changed as asked; the message says what to do."""

    exit_code = 2


class OwnerlessSessionsError(TokenError):
    """The first token would shut out whoever trains without one, and nobody said what becomes of their sessions."""


def issue_token(
    store: Store,
    name: str,
    scopes: frozenset[str],
    *,
    owner: str | None = None,
    lasts: float | None = None,
    adopt: bool | None = None,
    caller: Caller = ANYONE,
) -> tuple[Token, str]:
    """Make a token; the second value is shown once and never stored.

    Args:
        store: where it is kept.
        name: who or what it is for.
        scopes: keys of :data:`SCOPES`.
        owner: whose sessions it makes and uses; None: those of this token only.
        lasts: seconds until it expires; None: never.
        adopt: whether sessions that were made without a token become the owner's. It must be said for the first token
            of a store that has such sessions.
        caller: who makes it.

    Raises:
        OwnerlessSessionsError: it is the first token, and what becomes of sessions without an owner was not said.
        TokenError: a scope is unknown, or there is none; the name, the owner's name or the time is not allowed.
    """
    unknown = scopes - set(SCOPES)
    if unknown or not scopes:
        raise TokenError(f"scopes are {', '.join(SCOPES)}; not {', '.join(sorted(unknown)) or 'none'}")
    if not 0 < len(name) <= MAX_NAME or "\0" in name:
        raise TokenError(f"a token's name has 1 to {MAX_NAME} characters, and no NUL")
    check_owner(owner)
    secret = secrets.token_urlsafe(32)
    with store.writing() as connection:
        ownerless = 0 if adopt or count_tokens(connection) else count_ownerless(connection)
        if ownerless and adopt is None:
            raise OwnerlessSessionsError(
                f"the store has {ownerless} sessions that were made without a token. From its first token on, a server "
                "refuses requests without one, so trainers that send none stop. Say --adopt to give their sessions to "
                "the token's owner, and start them again with the token, or --no-adopt to leave these sessions to "
                "admin tokens (over HTTP: adopt, true or false)"
            )
        token = add_token(connection, caller, name, hash_secret(secret), scopes, owner, _end(lasts))
        if adopt:
            adopt_sessions(connection, caller, token.owner)
    return token, _bearer(token, secret)


def renew_token(
    store: Store, id: str, *, grace: float, lasts: float | None = None, caller: Caller = ANYONE
) -> tuple[Token, str]:
    """Give a token a new secret; the second value is shown once and never stored.

    Args:
        store: where it is kept.
        id: the token's.
        grace: seconds for which the present secret stays good, so that trainers can be given the new one.
        lasts: seconds until the token expires; None: it ends when it would have.
        caller: who does it.

    Raises:
        TokenError: no token of that id is valid, or a time is not allowed.
    """
    secret = secrets.token_urlsafe(32)
    if not 0 <= grace < _LONGEST:
        raise TokenError("the time of grace must be 0 seconds to a hundred years")
    expires = _end(lasts)
    with store.writing() as connection:
        token = rotate_token(connection, caller, id, hash_secret(secret), time.time() + grace, expires)
    if token is None:
        raise TokenError(
            f"there is no valid token {id!r}; one that has expired needs a new time (--expires; over HTTP expires_in)"
        )
    return token, _bearer(token, secret)


def check_owner(name: str | None) -> None:
    """Raise ``TokenError`` unless this can be the name of an owner."""
    if name is not None and not OWNER.fullmatch(name):
        raise TokenError(f"an owner's name has 1 to 32 characters of A-Z a-z 0-9 _ . @ -, not {name[:64]!r}")


def hash_secret(secret: str) -> bytes:
    """SHA-256 of a secret, which is all that is stored of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


_LONGEST = 100 * 366 * 86_400.0


def _end(lasts: float | None) -> float | None:
    if lasts is None:
        return None
    if not 0 < lasts < _LONGEST:
        raise TokenError("a token lasts more than 0 seconds, and at most a hundred years")
    return time.time() + lasts


def _bearer(token: Token, secret: str) -> str:
    return f"cur_{token.id}_{secret}"
