"""Middleware that every request passes: its id, limits on its body and time, a line in the log, its metrics."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curation.service.errors import Refusal
from curation.service.http.problems import problem, refusal_of
from curation.service.logs import AccessLog
from curation.service.monitoring.failures import Failures
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.settings import Settings

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_BODY_LIMITS: Mapping[str, str] = {"/v1/sessions/import": "max_checkpoint_bytes"}
_ONCE = frozenset({b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"x-request-id"})
_CLIENT_LEFT = 499  # for the log only: its body was not whole yet
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class RequestMiddleware:
    """Pure ASGI middleware, because a step costs about as much as a ``BaseHTTPMiddleware`` would add."""

    def __init__(
        self, app: ASGIApp, *, settings: Settings, metrics: Metrics, log: AccessLog, failures: Failures
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        client_id = headers.get(b"x-request-id", b"")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), *_SECURITY_HEADERS]
            await send(message)

        self._metrics.open += 1
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        deadline = Deadline(self._settings.body_seconds if has_body else self._settings.request_seconds)
        scope["state"]["deadline"] = deadline
        body = _LimitedBody(self._settings, _body_limit(scope), headers, receive, deadline, whole=not has_body)
        try:
            if len(headers) < len(scope["headers"]):
                _check_repeated(scope["headers"])
            await deadline.run(self._app(scope, body, answer))
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception as error:
            if status:
                raise
            slow = isinstance(error, TimeoutError) and not body.whole
            refusal = _too_slow(self._settings.body_seconds) if slow else refusal_of(error)
            self._failures.take(refusal, error, scope)
            await problem(refusal, request_id.decode())(scope, receive, answer)
        finally:
            self._metrics.open -= 1
            self._account(scope, status, time.perf_counter() - start, request_id, body.seen)

    def _account(self, scope: Scope, status: int, seconds: float, request_id: bytes, body_bytes: int) -> None:
        caller: Caller | None = scope["state"].get("caller")
        if caller is not None and caller.account is not None:
            caller.account.answered(body_bytes, status)
        route: Any = scope.get("route")
        path = getattr(route, "path", "unmatched")
        self._metrics.observe(path, scope["method"], status, seconds)
        if self._log.wants(status, seconds):
            peer, token = scope["client"], None if caller is None else caller.token
            self._log.add(request_id.decode(), scope["method"], scope["path"], status, seconds, peer and peer[0], token)


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse a header that says who asks, or what, and stands there twice: a proxy may have read the other one."""
    names = [name for name, _ in headers if name in _ONCE]
    for name in set(names):
        if names.count(name) > 1:
            raise Refusal("bad-request", f"the header {name.decode().title()} stands there twice: send it once")


class Deadline:
    """A time limit that may be set anew. ``asyncio.timeout`` does the same at five times the cost for each request."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._end, self._check)
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._expired = False

    def set(self, seconds: float) -> None:
        """From now on, so many seconds. A later end waits for the timer that runs; an earlier one needs its own."""
        end = self._loop.time() + seconds
        if end < self._end:
            self._timer.cancel()
            self._timer = self._loop.call_at(end, self._check)
        self._end = end

    async def run(self, work: Awaitable[None]) -> None:
        """Raises ``TimeoutError`` where it takes too long."""
        task = self._task
        assert task is not None
        cancelled = task.cancelling()
        try:
            await work
        except asyncio.CancelledError:
            if self._expired and task.uncancel() <= cancelled:
                raise TimeoutError from None
            raise
        finally:
            self._task = None
            self._timer.cancel()

    def _check(self) -> None:
        if self._task is None:
            return
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._check)
        else:
            self._expired = True
            self._task.cancel()


class _LimitedBody:
    """A ``receive`` that counts bytes. Once the body is whole, the time limit becomes that of the answer."""

    def __init__(
        self,
        settings: Settings,
        limit: str,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        deadline: Deadline,
        *,
        whole: bool,
    ) -> None:
        self._settings, self._receive, self._deadline = settings, receive, deadline
        declared = headers.get(b"content-length", b"0")
        self._limit, self._max_bytes = limit, getattr(settings, limit)
        self._refused = declared.isdigit() and int(declared) > self._max_bytes
        self.seen = 0
        self.whole = whole

    async def __call__(self) -> Message:
        if self._refused:
            raise _too_large(self._limit, self._max_bytes)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            if not self.whole:
                self._deadline.set(self._settings.request_seconds)
            self.whole = True
        self.seen += len(message.get("body", b""))
        if self.seen > self._max_bytes:
            raise _too_large(self._limit, self._max_bytes)
        return message


def _body_limit(scope: Scope) -> str:
    """The setting that says how large the body may be."""
    return _BODY_LIMITS.get(scope["path"].removeprefix(scope.get("root_path", "")), "max_body_bytes")


def _too_large(limit: str, max_bytes: int) -> Refusal:
    return Refusal("too-large", f"the body is larger than {max_bytes} bytes, this server's limit ({limit})")


def _too_slow(seconds: float) -> Refusal:
    return Refusal("timeout", f"the body did not arrive within {seconds:g} s")
