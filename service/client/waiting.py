"""Waiting of a client before it sends a request again: how long, until when, and what it says of it meanwhile.

Not stamina's: its pauses cannot be cut short from another thread, and what is sent again is sometimes another request
(:attr:`curation.service.client.requests.Request.poll`).
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOGGER = logging.getLogger("curation.client")
LONGEST = 5.0
"""Seconds, of the bound below which a pause is drawn."""
LOG_EVERY = 60.0
_HELD = 1.0
"""Seconds after which an answer was waited for: then the request goes again at once, and else within as many."""

_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The wait was cut short: nobody wants the answer any more."""


class Backoff:
    """When to send a request again: full jitter below a bound that doubles, and a last time as patience ends.

    Args:
        seconds: how long to go on; 0 sends nothing again.
        what: the request, as the log names it.
        wait_seconds: how long the server may say that other ranks are missing; None: without end.
    """

    def __init__(self, seconds: float, what: str, wait_seconds: float | None = None) -> None:
        self._start, self._seconds, self._what = time.monotonic(), seconds, what
        self._begin = self._sent = self._told = self._start
        self._wait_seconds = wait_seconds
        self._bound = 0.05
        self._logged: float | None = None
        self.repeated = False

    def pause(
        self, why: str, *, least: float = 0.0, expected: bool = False, most: float = float("inf")
    ) -> float | None:
        """Seconds to wait before the next try; None where there is none. Logged at first, and then each minute.

        Args:
            why: what hinders the request.
            least: seconds that the server asks to wait.
            expected: nothing is wrong, as while other ranks have not reported yet; logged as information.
            most: seconds after which to give up, where they are fewer than patience has.
        """
        passed = time.monotonic() - self._start
        left = min(self._seconds, most) - passed
        if left <= 0:
            return None
        if self._logged is None or passed - self._logged >= LOG_EVERY:
            self._logged = passed
            level = logging.INFO if expected else logging.WARNING
            LOGGER.log(level, "%s is sent again, for %.0f s more at most: %s", self._what, left, why)
        wait = min(least + random.uniform(0, self._bound), left)
        self._bound = min(2 * self._bound, LONGEST)
        return self._again(wait)

    def wait(self, why: str) -> float | None:
        """As :meth:`pause`, where the server lives and waits for other ranks; this takes no patience."""
        now = time.monotonic()
        if self._wait_seconds is not None and now - self._begin >= self._wait_seconds:
            return None
        if now - self._told >= LOG_EVERY:
            self._told = now
            LOGGER.warning("%s waits for %.0f s now: %s", self._what, now - self._begin, why)
        held = now - self._sent >= _HELD
        self._start, self._bound = now, 0.05
        return self._again(0.0 if held else random.uniform(0, _HELD))

    def _again(self, wait: float) -> float:
        self.repeated, self._sent = True, time.monotonic() + wait
        return wait


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """In this thread, waits end with :class:`Interrupted` as soon as the event is set."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def wait(seconds: float) -> None:
    """Let so many seconds pass.

    Raises:
        Interrupted: see :func:`interruptible`.
    """
    stop = _stop.get()
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Interrupted


async_wait = asyncio.sleep
