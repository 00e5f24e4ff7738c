"""Bearer tokens: ``cur_<id>_<secret>``. The store keeps a SHA-256 of the secret, which is 256 random bits.

While the store never had a token and the server listens on loopback only, requests need none; a web page in the same
machine's browser is kept out by the Host header (DNS rebinding) and by the body's Content-Type (cross-site forms).
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping

from curation.errors import CurationError
from curation.service.errors import Refusal
from curation.service.session.caller import Caller
from curation.service.settings import Settings
from curation.service.store import Store, Token

SCOPES: Mapping[str, str] = {
    "read": "look at sessions, datasets and metrics",
    "select": "read; and create sessions, take steps, use /v1/select",
    "admin": "select; and everybody's sessions",
}
_IMPLIED: Mapping[str, frozenset[str]] = {
    "read": frozenset({"read"}),
    "select": frozenset({"read", "select"}),
    "admin": frozenset({"read", "select", "admin"}),
}
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class InsecureError(CurationError):
    """The server was asked to listen to the network although nobody needs a token."""


ANYONE = Caller(None, _IMPLIED["admin"])


def issue_token(store: Store, name: str, scopes: frozenset[str]) -> tuple[Token, str]:
    """Make a token; the second value is shown once and never stored.

    Raises:
        ValueError: a scope is unknown, or there is none.
    """
    unknown = scopes - set(SCOPES)
    if unknown or not scopes:
        raise ValueError(f"scopes are {', '.join(SCOPES)}; not {', '.join(sorted(unknown)) or 'none'}")
    secret = secrets.token_urlsafe(32)
    token = store.add_token(name, _hash(secret), scopes)
    return token, f"cur_{token.id}_{secret}"


def check_exposure(settings: Settings, store: Store) -> None:
    """Refuse to listen to more than loopback while the store has no token.

    Raises:
        InsecureError: says how to make one.
    """
    if not settings.loopback and not any(token.revoked is None for token in store.tokens()):
        raise InsecureError(
            f"{settings.host} can be reached from other machines, and the store has no token, so anybody could use it. "
            f"Make one first: curation token create NAME --store {store.safe_url}"
        )


class Authenticator:
    """Answers who a request's caller is, from tokens that are at most ``token_seconds`` old."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._loopback = settings.loopback
        self._hosts = LOCAL_HOSTS | {host.lower() for host in settings.allowed_hosts}
        self._tokens: dict[str, Token] = {}
        self._any_token = False
        self._callers: dict[bytes, Caller] = {}
        self._fresh_until = float("-inf")
        self._lock = asyncio.Lock()

    async def caller(self, authorization: bytes | None, host: bytes | None) -> Caller:
        """The caller of a request with these headers.

        Raises:
            Refusal: no token where one is needed, or a wrong one.
        """
        if time.monotonic() >= self._fresh_until:
            await self._refresh()
        if authorization is None:
            return self._without_token(host)
        digest = hashlib.sha256(authorization).digest()
        if digest in self._callers:
            return self._callers[digest]
        scheme, _, credentials = authorization.decode("latin-1").partition(" ")
        parts = credentials.strip().split("_", 2)
        token = self._tokens.get(parts[1]) if len(parts) == 3 and parts[0] == "cur" else None
        stored_hash = token.hash if token else b"\0" * 32
        valid = hmac.compare_digest(stored_hash, _hash(parts[-1]))
        if scheme.lower() != "bearer" or token is None or not valid:
            raise Refusal("no-token", "the token is unknown, revoked or malformed: send 'Authorization: Bearer cur_…'")
        caller = Caller(token.id, frozenset().union(*(_IMPLIED[scope] for scope in token.scopes)))
        self._callers[digest] = caller
        return caller

    def _without_token(self, host: bytes | None) -> Caller:
        if self._any_token or self._settings.auth == "required" or not self._loopback:
            raise Refusal("no-token", "send 'Authorization: Bearer cur_…' (curation token create makes one)")
        name = (host or b"").decode("latin-1").lower()
        name = name if name.endswith("]") else name.rsplit(":", 1)[0]
        if name not in self._hosts:
            raise Refusal(
                "bad-host",
                f"while no token is needed, only requests to localhost are answered, not to {name!r}: make a token, "
                "or name the host under allowed_hosts",
            )
        return ANYONE

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() < self._fresh_until:
                return
            stored = await asyncio.to_thread(self._store.tokens)
            tokens = {token.id: token for token in stored if token.revoked is None}
            self._any_token = bool(stored)  # a revoked token too: revoking the last one must not open the door
            if tokens != self._tokens:
                self._tokens, self._callers = tokens, {}
            self._fresh_until = time.monotonic() + self._settings.token_seconds


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
