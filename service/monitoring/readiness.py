"""Readiness: whether the store takes writes. It is asked in a thread of its own, which a store that hangs may keep; one
answer is for all that wait, and a good one for a second, so that probes cost nothing. Recovery is seen at once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from curation.service.errors import Refusal
from curation.service.http.problems import refusal_of
from curation.service.monitoring.failures import cause_of

FRESH_SECONDS = 1.0


class Readiness:
    """Whether a server can do its work; for one event loop.

    Args:
        probe: writes to the store, and raises where that fails.
        seconds: how long that may take.
    """

    def __init__(self, probe: Callable[[], None], *, seconds: float) -> None:
        self._probe = probe
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, "curation-probe")
        self._running: asyncio.Future[None] | None = None
        self._started = float("-inf")
        self._good_until = float("-inf")
        self._error: BaseException | None = None

    async def check(self) -> None:
        """Return where the store took a write within the last second.

        Raises:
            Refusal: it did not; says why.
        """
        loop = asyncio.get_running_loop()
        if self._running is None and loop.time() >= self._good_until:
            self._started = loop.time()
            self._running = loop.run_in_executor(self._thread, self._probe)
            self._running.add_done_callback(self._take)
        if self._running is not None:
            left = self._started + self._seconds - loop.time()
            await asyncio.wait([self._running], timeout=max(0.0, left))
        if self._running is not None and not self._running.done():
            raise Refusal(
                "store-unavailable", f"the store did not answer a write within {self._seconds:g} s", retry_after=1
            )
        if isinstance(self._error, Exception):
            text = cause_of(refusal_of(self._error), self._error)
            detail = f"the store takes no writes: {text}"
            raise Refusal("store-unavailable", detail, retry_after=1) from self._error

    def close(self) -> None:
        """Let the thread go; it ends when the store answers."""
        self._thread.shutdown(wait=False)

    def _take(self, done: "asyncio.Future[None]") -> None:
        self._error = None if done.cancelled() else done.exception()
        if self._error is None:
            self._good_until = asyncio.get_running_loop().time() + FRESH_SECONDS
        self._running = None
