"""Authentication: who makes a request, by its bearer token.

While the store never had a token and the server listens on loopback only, requests need none; a web page in the same
machine's browser is kept out by the Host header (DNS rebinding) and by the body's Content-Type (cross-site forms).
"""

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from curation.errors import CurationError
from curation.service.access.tokens import IMPLIED, hash_secret
from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.session.account import Account, Quota
from curation.service.session.caller import ANYONE, Caller
from curation.service.settings import Settings
from curation.service.store import Store, Token
from curation.service.store.owners import read_quotas
from curation.service.store.tokens import note_use, read_tokens

STALE_SECONDS = 30.0
"""For how long after ``token_seconds`` old tokens count while the store does not answer."""
_PATIENCE = 0.5
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_BEARER = re.compile(rb"(?i:bearer) +cur_([0-9a-f]{16})_([A-Za-z0-9_-]{43}) *")
USE_SECONDS = 60.0
"""How far apart the notes are of when a token was last used."""
_EARLY_SECONDS = 0.25
_GATHER_SECONDS = 1.0
_MAX_KNOWN = 4096


class InsecureError(CurationError):
    """The server was asked to listen to the network although nobody needs a token."""


def check_exposure(settings: Settings, store: Store) -> None:
    """Refuse to listen to more than loopback while the store has no token.

    Raises:
        InsecureError: says how to make one.
    """
    if not settings.loopback and all(token.ended(time.time()) for token in read_tokens(store)):
        raise InsecureError(
            f"{settings.host} can be reached from other machines, and the store has no valid token, so anybody could "
            f"use it. Make one first: curation token create NAME --owner TEAM --store {store.safe_url}"
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """A header that was right. ``until``, on the monotonic clock: when it may have ended, or its use is noted again."""

    caller: Caller
    until: float


class Authenticator:
    """Answers who a request's caller is, from tokens and quotas that are at most ``token_seconds`` old.

    Args:
        settings: of this server.
        store: where tokens are kept.
        renamed: is told the owners that there are no more.
    """

    def __init__(self, settings: Settings, store: Store, renamed: Callable[[Set[str]], None]) -> None:
        self._settings = settings
        self._renamed = renamed
        self._store = store
        self._loopback = settings.loopback
        self._hosts = LOCAL_HOSTS | {host.lower() for host in settings.allowed_hosts}
        self._default = Quota(
            settings.owner_sessions, settings.owner_requests_per_second, settings.owner_bytes_per_second
        )
        self._accounts: dict[str, Account] = {}
        self._tokens: dict[str, Token] = {}
        self._first_token: float | None = None
        self._known: dict[bytes, _Known] = {}
        self._read_at = self._due = float("-inf")
        self._lock = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        # Its own: whatever else waits for a thread, who calls can be told.
        self._thread = ThreadPoolExecutor(1, "curation-tokens")
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._noting: asyncio.Task[None] | None = None

    @property
    def accounts(self) -> Iterable[Account]:
        """What each owner that has a token may use, and used here."""
        return self._accounts.values()

    async def caller(self, authorization: bytes | None, host: bytes | None) -> Caller:
        """The caller of a request with these headers.

        Raises:
            Refusal: no token where one is needed, or a wrong one.
        """
        now = time.monotonic()
        if now >= self._due:
            await self._renew(now - self._read_at)
        if authorization is None:
            return self._without_token(host)
        digest = hashlib.sha256(authorization).digest()
        known = self._known.get(digest)
        if known is None or now >= known.until:
            token, newest = await self._look_up(authorization)
            if len(self._known) >= _MAX_KNOWN:  # one token has as many headers as it has spellings
                self._known.clear()
            known = self._known[digest] = self._check(token, newest, now)
        return known.caller

    async def check(self, caller: Caller) -> None:
        """Look again at the caller of a request that waited.

        Raises:
            Refusal: its token has ended since; or it has none, and one is needed by now.
        """
        now = time.monotonic()
        if now >= self._due:
            await self._renew(now - self._read_at)
        if caller.token is None:
            self._without_token(b"localhost")
        elif caller.token in self._tokens:
            self._check(self._tokens[caller.token], True, now)
        else:
            raise Refusal("no-token", f"token {caller.token} is there no more: ask for another")

    async def close(self) -> None:
        """Note the last uses of tokens."""
        if self._noting is not None:
            self._noting.cancel()
        await self._note_uses()
        self._thread.shutdown(wait=False)

    async def _look_up(self, authorization: bytes) -> tuple[Token, bool]:
        match = _BEARER.fullmatch(authorization)
        if match is not None:
            id, secret = match[1].decode(), match[2].decode()
            found = self._find(id, secret)
            if found is None:
                await self._refresh_early()
                found = self._find(id, secret)
            if found is not None:
                return found
        raise Refusal("no-token", "the token is unknown or malformed: send 'Authorization: Bearer cur_…'")

    def _find(self, id: str, secret: str) -> tuple[Token, bool] | None:
        """The token of an id and a secret, and whether that is its newest secret."""
        token, hash = self._tokens.get(id), hash_secret(secret)
        new = hmac.compare_digest((token and token.hash) or b"\0" * 32, hash)
        old = hmac.compare_digest((token and token.old_hash) or b"\0" * 32, hash)
        return (token, new) if token is not None and (new or old) else None

    def _check(self, token: Token, newest: bool, now: float) -> _Known:
        """Refuse a token that has ended; otherwise who it is, and for how long."""
        clock = time.time()
        if token.revoked is not None:
            raise Refusal("no-token", f"token {token.id} was revoked ({_day(token.revoked)}): ask for another")
        ends = [end for end in (token.expires, None if newest else token.old_until or 0.0) if end is not None]
        if ends and min(ends) <= clock:
            rotated = "" if newest else ", when it was rotated"
            raise Refusal(
                "no-token",
                f"this secret of token {token.id} ended {_day(min(ends))}{rotated}: ask for its new one, or for "
                "another token (curation token rotate, curation token create)",
            )
        self._note(token.id, now, clock)
        scopes = frozenset().union(*(IMPLIED[scope] for scope in token.scopes))
        caller = Caller(token.owner, scopes, token.id, "admin" in scopes, self._accounts[token.owner])
        return _Known(caller, now + min([USE_SECONDS, *(end - clock for end in ends)]))

    def _without_token(self, host: bytes | None) -> Caller:
        if self._first_token is not None or self._settings.auth == "required" or not self._loopback:
            since = "" if self._first_token is None else f" since {_day(self._first_token)}, when its first was made"
            raise Refusal(
                "no-token",
                f"this server asks for a token{since}: send 'Authorization: Bearer cur_…', in Python "
                "Client(url, token=...). 'curation token create NAME --owner TEAM' makes one",
            )
        name = (host or b"").decode("latin-1").lower()
        name = name if name.endswith("]") else name.rsplit(":", 1)[0]
        if name not in self._hosts:
            raise Refusal(
                "bad-host",
                f"while no token is needed, only requests to localhost are answered, not to {name!r}: make a token, "
                "or name the host under allowed_hosts",
            )
        return ANYONE

    async def _refresh_early(self) -> None:
        """For a token that is unknown because it is new. Wrong ones wait for it, and cause a few reads a second."""
        now = time.monotonic()
        await asyncio.sleep(self._read_at + _EARLY_SECONDS - now)
        if self._read_at <= now:
            self._due = now
            await self._refresh()

    async def _renew(self, age: float) -> None:
        """Read the tokens anew: nobody waits for it until they are ``token_seconds`` old, and then not for long.

        Tokens older than that by ``STALE_SECONDS`` do not count: then everybody waits.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._refresh())
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        if age >= self._settings.token_seconds + STALE_SECONDS:
            await asyncio.shield(self._reading)
        elif age >= self._settings.token_seconds:
            await asyncio.wait({self._reading}, timeout=_PATIENCE)

    async def _refresh(self) -> None:
        async with self._lock:
            started = time.monotonic()
            if started < self._due:
                return
            stored, quotas = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
            for owner in {token.owner for token in stored}:
                quota = _with_default(quotas.get(owner, Quota()), self._default)
                if owner not in self._accounts:
                    self._accounts[owner] = Account(owner, quota)
                elif self._accounts[owner].quota != quota:
                    self._accounts[owner].quota = quota
            tokens = {token.id: token._replace(used=None) for token in stored}
            gone = {token.owner for token in self._tokens.values()} - {token.owner for token in stored}
            if gone:
                self._renamed(gone)
            if tokens != self._tokens:
                self._tokens, self._known = tokens, {}
            # Ended ones count, too: revoking the last token must not open the door.
            first = min((token.created for token in stored), default=None)
            if first is not None and self._first_token is None and self._read_at > 0:
                logger.warning("the store has its first token: from now on requests without one are refused")
            self._first_token = first
            self._read_at = started
            self._due = started + self._settings.token_seconds / 2

    def _read(self) -> tuple[list[Token], dict[str, Quota]]:
        return read_tokens(self._store), read_quotas(self._store)

    def _note(self, id: str, now: float, clock: float) -> None:
        if now - self._noted.get(id, float("-inf")) < USE_SECONDS:
            return
        self._noted[id], self._used[id] = now, clock
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._gather_uses())

    async def _gather_uses(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        await self._note_uses()

    async def _note_uses(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await asyncio.to_thread(note_use, self._store, used)
        except SQLAlchemyError:
            logger.warning("the store did not note when tokens were used", exc_info=True)


def _with_default(quota: Quota, default: Quota) -> Quota:
    return default._replace(**{limit: value for limit, value in quota._asdict().items() if value is not None})


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
