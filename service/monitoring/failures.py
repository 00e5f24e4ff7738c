"""Failures of a server: why a request was refused, counted by kind; the causes of those answered 5xx in the log.

The same cause may come with every request of every trainer. It is logged at once, and then counted: a line a minute.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.types import Scope

from curation.service.errors import Refusal
from curation.service.http.problems import KINDS
from curation.service.logs import logger
from curation.service.monitoring.metrics import Metrics

SECONDS = 60.0
"""How often a cause that goes on is logged."""
_MOST_CAUSES = 100
_MOST_CHARACTERS = 500


@dataclass(frozen=True)
class Cause:
    """What lies behind a refusal: one for all requests that fail alike."""

    kind: str
    error: str
    text: str


@dataclass
class _Repeated:
    """Times that a cause came again since its last line, and the last request that met it."""

    timer: asyncio.TimerHandle
    times: int = 0
    request: str = ""


class Failures:
    """Counts and logs the refusals of one app; used in its event loop.

    Args:
        metrics: counts refusals by kind, and tokens that are not valid.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._causes: dict[Cause, _Repeated] = {}
        for kind in KINDS:
            metrics.refusals.labels(kind)

    def take(self, refusal: Refusal, error: Exception, scope: Scope) -> None:
        """Take in what a request was refused with, and the exception that the refusal stands for."""
        self._metrics.refusals.labels(refusal.kind).inc()
        if refusal.kind == "no-token" and any(name == b"authorization" for name, _ in scope["headers"]):
            self._metrics.failed_logins.inc()
        if KINDS[refusal.kind][0] < 500:
            return
        about, peer = scope.get("state", {}), scope.get("client")
        request, caller = about.get("request_id", ""), about.get("caller")
        cause = self._cause(refusal, error)
        repeated = self._causes.get(cause)
        if repeated is not None:
            repeated.times += 1
            repeated.request = request
            return
        self._causes[cause] = _Repeated(self._later(cause))
        trace = error if refusal.kind == "internal" else None
        who = {"peer": peer and peer[0], "token": caller and caller.token}
        fields = {"request": request, "method": scope["method"], "path": scope["path"], **who, **_fields(cause)}
        logger.error("request failed", exc_info=trace, extra={"fields": fields})

    def close(self) -> None:
        """Log what was counted so far."""
        for cause, repeated in self._causes.items():
            repeated.timer.cancel()
            _log_repeated(cause, repeated)
        self._causes = {}

    def _cause(self, refusal: Refusal, error: Exception) -> Cause:
        cause = Cause(refusal.kind, type(_root(error)).__name__, cause_of(refusal, error))
        full = len(self._causes) >= _MOST_CAUSES and cause not in self._causes
        return Cause(refusal.kind, cause.error, "several causes") if full else cause

    def _later(self, cause: Cause) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SECONDS, self._summarize, cause)

    def _summarize(self, cause: Cause) -> None:
        repeated = self._causes.pop(cause)
        if repeated.times:
            _log_repeated(cause, repeated)
            self._causes[cause] = _Repeated(self._later(cause))


def cause_of(refusal: Refusal, error: Exception) -> str:
    """What went wrong, in one line, as the database or the system says it; without statements and their values."""
    root = _root(error)
    diagnostic: Any = getattr(root, "diag", None)
    text = getattr(diagnostic, "message_primary", None) or str(root) or refusal.detail
    return " ".join(text.split())[:_MOST_CHARACTERS]


def _root(error: BaseException) -> BaseException:
    """The error that a refusal was raised from, or that the database's driver raised."""
    if isinstance(error, Refusal) and error.__cause__ is not None:
        return _root(error.__cause__)
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def _fields(cause: Cause) -> dict[str, Any]:
    return {"kind": cause.kind, "error": cause.error, "cause": cause.text}


def _log_repeated(cause: Cause, repeated: _Repeated) -> None:
    if repeated.times:
        fields = {"times": repeated.times, "request": repeated.request, **_fields(cause)}
        logger.error("requests failed again", extra={"fields": fields})
