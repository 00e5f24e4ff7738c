"""Middleware that every request passes: its id, limits on its body and time, a line in the log, its metrics."""

import re
import secrets
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curation.service.auth import Authenticator
from curation.service.errors import Refusal
from curation.service.http.admission.deadline import Deadline
from curation.service.http.admission.request_body import BodyLimits, RequestBody
from curation.service.http.problems import problem, refusal_of
from curation.service.logs import AccessLog
from curation.service.monitoring.failures import Failures
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.settings import Settings
from curation.service.workers.fairness import FairSlots

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_ONCE = frozenset({b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"x-request-id"})
_PROCESS, _NUMBERS = secrets.token_hex(6).encode(), count()
_CLIENT_LEFT = 499  # for the log only
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class RequestMiddleware:
    """Pure ASGI middleware, because a step costs about as much as a ``BaseHTTPMiddleware`` would add."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: Metrics,
        log: AccessLog,
        failures: Failures,
        authenticator: Authenticator,
        large_bodies: FairSlots,
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._failures = failures
        self._limits = BodyLimits(settings, large_bodies, authenticator)
        self._least = min(settings.body_seconds, settings.request_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        client_id = headers.get(b"x-request-id", b"")
        # A random number of its own would cost each request a call of the system.
        own_id = b"%s-%x" % (_PROCESS, next(_NUMBERS))
        request_id = client_id if client_id and _REQUEST_ID.fullmatch(client_id) else own_id
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), *_SECURITY_HEADERS]
            await send(message)

        self._metrics.open += 1
        deadline = Deadline(self._settings.request_seconds, least=self._least)
        body = RequestBody(scope, headers, receive, deadline, self._limits)
        about = scope.setdefault("state", {})
        about["request_id"], about["headers"] = request_id.decode(), headers
        about["deadline"], about["body"] = deadline, body
        try:
            if len(headers) < len(scope["headers"]):
                _check_repeated(scope["headers"])
            await deadline.run(self._app(scope, body, answer))
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception as error:
            if status:
                raise
            late = isinstance(error, TimeoutError) and body.late
            refusal = _too_slow(self._settings.body_seconds) if late else refusal_of(error)
            self._failures.take(refusal, error, scope)
            await problem(refusal, request_id.decode())(scope, receive, answer)
        finally:
            body.parsed()
            self._metrics.open -= 1
            # They know the scope: left in there, a request would stay in memory until the garbage collector comes.
            del about["body"], about["deadline"]
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


def _too_slow(seconds: float) -> Refusal:
    return Refusal("timeout", f"the body did not arrive within {seconds:g} s")
