"""What every request passes: a request id, limits on its body and time, a line in the log, a place in the metrics."""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curation.service.logs import logger
from curation.service.metrics import Metrics
from curation.service.problems import problem, refusal_of
from curation.service.sessions import Refusal
from curation.service.settings import Settings

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class Gate:
    """Pure ASGI middleware, because a step costs about as much as a ``BaseHTTPMiddleware`` would add."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), *_SAFETY]
            await send(message)

        self._metrics.open.inc()
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                await self._app(scope, self._limited(headers, receive), answer)
        except Exception as error:
            if status:
                raise
            refusal = refusal_of(error)
            if refusal.kind == "internal":
                logger.exception("request failed", extra={"fields": {"request": request_id.decode()}})
            await problem(refusal, request_id.decode())(scope, receive, answer)
        finally:
            self._metrics.open.dec()
            self._account(scope, status, time.perf_counter() - start, request_id)

    def _limited(self, headers: Mapping[bytes, bytes], receive: Receive) -> Receive:
        most = self._settings.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        left = most - (int(declared) if declared.isdigit() else 0)
        seen, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._settings.body_seconds

        async def limited() -> Message:
            nonlocal seen, whole
            if left < 0:
                raise _too_large(most)
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise Refusal("timeout", f"the body did not arrive within {self._settings.body_seconds:g} s") from error
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen > most:
                    raise _too_large(most)
            return message

        return limited

    def _account(self, scope: Scope, status: int, seconds: float, request_id: bytes) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", "unmatched")
        self._metrics.seconds.labels(path, scope["method"], status).observe(seconds)
        if self._settings.access_log:
            fields = {
                "request": request_id.decode(),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            logger.info("request", extra={"fields": fields})


def _too_large(most: int) -> Refusal:
    return Refusal("too-large", f"the body is larger than {most} bytes, this server's limit (max_body_bytes)")
