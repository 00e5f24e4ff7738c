"""Logs: one JSON object a line on standard error. No header, body or token is ever logged.

Lines of answered requests are written together, a tenth of a second late at most: see :class:`AccessLog`.
"""

import asyncio
import json
import logging
import math
import sys
import time
from functools import lru_cache
from typing import Any, Literal, NamedTuple

logger = logging.getLogger("curation.service")
AccessMode = Literal["all", "slow", "errors", "off"]


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``message`` and whatever stands under ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        lines: list[str] | None = getattr(record, "lines", None)
        if lines:
            return "\n".join(lines)
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class AccessLog:
    """A line for each answered request. They gather, because to write one costs about what it takes to answer a step.

    A server that is killed loses the last tenth of a second of these lines, and of no others.

    Args:
        mode: which requests have a line: ``all``; ``slow``, those that took longer than ``slow_seconds`` or failed;
            ``errors``, those answered with 400 or above; or none (``off``).
        slow_seconds: for ``slow``.
    """

    LATE = 0.1

    def __init__(self, mode: AccessMode = "all", slow_seconds: float = 1.0) -> None:
        self._answered: list[_Answered] = []
        self._from_status = {"all": 0, "off": sys.maxsize}.get(mode, 400)
        self._from_seconds = slow_seconds if mode == "slow" else math.inf

    def wants(self, status: int, seconds: float) -> bool:
        """Whether a request that was answered so has a line."""
        return status >= self._from_status or seconds > self._from_seconds

    def add(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        peer: str | None = None,
        token: str | None = None,
    ) -> None:
        """Take in an answered request, of a peer's address and a token's id; in an event loop."""
        if not logger.isEnabledFor(logging.INFO):
            return
        self._answered.append(_Answered(time.time(), request_id, method, path, status, seconds, peer, token))
        if len(self._answered) == 1:
            asyncio.get_running_loop().call_later(self.LATE, self.flush)

    def flush(self) -> None:
        """Write the lines that have gathered."""
        answered, self._answered = self._answered, []
        if answered:
            logger.info("%d requests", len(answered), extra={"lines": [one.line() for one in answered]})


class _Answered(NamedTuple):
    at: float
    request_id: str
    method: str
    path: str
    status: int
    seconds: float
    peer: str | None
    token: str | None

    def line(self) -> str:
        return (
            f'{{"time": "{_second(int(self.at))}.{int(self.at % 1 * 1000):03d}Z", "level": "info", '
            f'"logger": "{logger.name}", "message": "request", "request": "{self.request_id}", '
            f'"method": {_quoted(self.method)}, "path": {_quoted(self.path)}, "status": {self.status}, '
            f'"ms": {self.seconds * 1000:.2f}, "peer": {_or_null(self.peer)}, "token": {_or_null(self.token)}}}'
        )


_quoted = json.encoder.encode_basestring_ascii


def _or_null(value: str | None) -> str:
    return "null" if value is None else _quoted(value)


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def configure(level: str) -> None:
    """Send this service's and uvicorn's logs to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("curation.service", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.setLevel(level.upper())
        log.propagate = False
