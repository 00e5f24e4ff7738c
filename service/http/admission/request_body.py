"""Body of a request: not read before the caller is known, and no more of it than its route asks for."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from curation.service.auth import Authenticator
from curation.service.errors import Refusal
from curation.service.http.admission.deadline import Deadline
from curation.service.http.dependencies import caller_of
from curation.service.settings import Settings
from curation.service.workers.fairness import FairSlots

SMALL_BODY = 64 << 10
"""Bytes of a body for which its route asks nothing, such as one that FastAPI parses."""
LARGE_BODY = 1 << 20
"""Bytes from which on few bodies are held at once."""


class BodyLimits(NamedTuple):
    """What the bodies of a server share: settings, what large ones wait for, and who knows the callers."""

    settings: Settings
    slots: FairSlots
    authenticator: Authenticator


class RequestBody:
    """A ``receive`` that keeps to limits. Time counts while bytes are waited for, and for nothing else.

    Args:
        scope: of the request.
        headers: of the request.
        receive: the server's.
        deadline: of the request; it is that of the body while the body is read.
        limits: of the server.
    """

    def __init__(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, deadline: Deadline, limits: BodyLimits
    ) -> None:
        self._scope, self._receive, self._deadline, self._limits = scope, receive, deadline, limits
        declared = headers.get(b"content-length", b"0")
        self._declared = int(declared) if declared.isdigit() else 0
        self._whole = not self._declared and b"transfer-encoding" not in headers
        self._begun = False
        self.seen = 0
        self._most, self._limit = SMALL_BODY, ""
        self._kept = True
        self._give_back: Callable[[], None] | None = None
        self.late = False
        """Whether bytes are being waited for."""

    def allow(self, most: int, limit: str = "", *, kept: bool = True) -> None:
        """Let the body have so many bytes: for a route that knows its caller, and what the body may be.

        Args:
            most: bytes.
            limit: the setting that says so; none where it is what the request is for that does.
            kept: whether it is held in memory, of which there is only so much.
        """
        self._most, self._limit, self._kept = most, limit, kept

    async def read(self) -> bytes:
        """All of it.

        Raises:
            Refusal: it is too large.
            ClientDisconnect: the client left before it was whole.
        """
        parts = []
        while True:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                if self.seen <= LARGE_BODY:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
                return await asyncio.to_thread(b"".join, parts)  # of 60 MB it takes 0.2 s on a busy machine

    async def gone(self) -> NoReturn:
        """Wait, once it is whole, until the client leaves.

        Raises:
            ClientDisconnect: it left.
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect

    def parsed(self) -> None:
        """What was read is no more held: another large body may come."""
        if self._give_back is not None:
            self._give_back()

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        size = max(self._declared, self.seen)
        if not self._begun and "caller" not in self._scope["state"]:
            try:
                await caller_of(self._scope, self._limits.authenticator)
            except Refusal as refusal:
                raise _Unread.of(refusal) from None
        if size > self._most:
            raise self._too_large()
        if size > LARGE_BODY and self._kept and self._give_back is None:
            self._deadline.set(self._limits.settings.request_seconds)
            self._give_back = await self._limits.slots.take()
            self._begun = False
        if not self._begun:
            self._begun = True
            self._deadline.set(self._limits.settings.body_seconds)
        self.late = True
        message = await self._receive()
        self.late = False
        self.seen += len(message.get("body", b""))
        if self.seen > self._most:
            raise self._too_large()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._whole = True
            self._deadline.set(self._limits.settings.request_seconds)
        return message

    def _too_large(self) -> Refusal:
        why = f"this server's limit ({self._limit})" if self._limit else "more than such a request can need"
        return _Unread("too-large", f"the body is larger than {self._most} bytes, {why}")


class _Unread(Refusal, HTTPException):
    """A refusal to read a body. Where FastAPI reads it, that takes all but its own exceptions for broken JSON."""

    @classmethod
    def of(cls, refusal: Refusal) -> "_Unread":
        """The same refusal."""
        return cls(refusal.kind, refusal.detail, retry_after=refusal.retry_after, **refusal.members)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body of a request, up to ``max_body_bytes``: for a route that knows its caller.

    Raises:
        Refusal: it is too large.
    """
    body_of(request).allow(settings.max_body_bytes, "max_body_bytes")
    return await body_of(request).read()


def body_of(request: Request) -> RequestBody:
    """The body that :class:`curation.service.http.middleware.RequestMiddleware` put before a request."""
    body: RequestBody = request.scope["state"]["body"]
    return body
