"""Group commit: the reports of all requests that wait go to the store in one transaction, and then all are answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from curation.service.logs import logger
from curation.service.monitoring.metrics import Metrics
from curation.service.session.session import Report
from curation.service.store import Store
from curation.service.store.reports import Ignored, Write
from curation.service.workers.fairness import TENANT

GROUP = 512
GROUP_BYTES = 2 << 20
"""Bytes of losses in one transaction, for which everybody else's next one waits."""
PIECE_BYTES = 1 << 20
"""Bytes of losses that one request has in a group: its others wait for the next ones."""


class _Pending(NamedTuple):
    write: Write
    future: "asyncio.Future[Ignored]"
    size: int
    payer: str


def size_of(reports: Sequence[Report]) -> int:
    """Bytes of the losses."""
    return sum([report.losses.nbytes for report in reports])


def pieces(reports: Sequence[Report]) -> Iterator[Sequence[Report]]:
    """A request's reports in runs of ``PIECE_BYTES``, or of one report that is larger; one empty run where none are."""
    start = size = 0
    for place, report in enumerate(reports):
        if place > start and size + report.losses.nbytes > PIECE_BYTES:
            yield reports[start:place]
            start, size = place, 0
        size += report.losses.nbytes
    yield reports[start:]


class GroupCommit:
    """Turns many small commits into few: while one is on its way to the disk, the next group gathers.

    It belongs to one event loop. A thread commits, because a disk may take its time; the loop and the thread meet
    twice a group and not twice a request, because each meeting costs a wait for the interpreter.

    Args:
        store: where they go.
        metrics: takes in what was committed.
        committed: is told of each group, whether or not those who sent it still wait.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        committed: Callable[[Sequence[Write], Sequence[Ignored | Exception]], None],
    ) -> None:
        self._store, self._metrics, self._committed = store, metrics, committed
        self._pending: list[_Pending] = []
        self._bytes = 0
        self._busy = False
        self._stopped = False
        # An executor makes a future of each call, whose locks would be taken twice a group.
        self._groups: SimpleQueue[tuple[asyncio.AbstractEventLoop, list[_Pending]] | None] = SimpleQueue()
        self._thread = Thread(target=self._write, name="curation-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests whose commit has not begun."""
        return len(self._pending)

    def stop(self) -> None:
        """End the thread once it has committed what it was given; who still waits is not answered."""
        self._stopped = True
        self._groups.put(None)
        self._thread.join()

    def submit(self, key: int, generation: int, reports: Sequence[Report]) -> "asyncio.Future[Ignored]":
        """Queue a request's reports; the future is done once they are on disk, with those that were there otherwise.

        It fails with ``Refusal`` where the session changed, and with what the database raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ignored] = loop.create_future()
        size = size_of(reports)
        self._pending.append(_Pending(Write(key, generation, reports), future, size, TENANT.get().payer))
        self._bytes += size
        if not self._busy:
            self._busy = True
            # Not now: the requests that the loop has already read join the group.
            loop.call_soon(self._next, loop)
        return future

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        group = self._group()
        if self._stopped:
            for pending in group:
                pending.future.cancel()
            return
        self._groups.put((loop, group))

    def _group(self) -> list[_Pending]:
        """What is committed next: all that waits, or of each owner as much as of every other, in bytes."""
        waiting, size = self._pending, self._bytes
        self._pending, self._bytes = [], 0
        if len(waiting) <= GROUP and size <= GROUP_BYTES:
            return waiting
        before: Counter[str] = Counter()
        turns = []
        for pending in waiting:
            turns.append(before[pending.payer])
            before[pending.payer] += pending.size + 1
        group: list[_Pending] = []
        taken = 0
        for place in sorted(range(len(waiting)), key=turns.__getitem__):
            pending = waiting[place]
            if len(group) < GROUP and (taken + pending.size <= GROUP_BYTES or not group):
                group.append(pending)
                taken += pending.size
            else:
                self._pending.append(pending)
                self._bytes += pending.size
        return group

    def _write(self) -> None:
        while (given := self._groups.get()) is not None:
            self._commit(*given)

    def _commit(self, loop: asyncio.AbstractEventLoop, group: list[_Pending]) -> None:
        outcomes: Sequence[Ignored | Exception]
        start = time.perf_counter()
        try:
            outcomes = self._store.add_reports([pending.write for pending in group])
            reports = [report for pending in group for report in pending.write.reports]
            self._metrics.committed_reports += len(reports)
            self._metrics.committed_bytes += size_of(reports)
        except Exception as error:
            outcomes = [error] * len(group)
        self._metrics.commit_seconds.observe(time.perf_counter() - start)
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._answer, loop, group, outcomes)

    def _answer(
        self, loop: asyncio.AbstractEventLoop, group: list[_Pending], outcomes: Sequence[Ignored | Exception]
    ) -> None:
        self._committed([pending.write for pending in group], outcomes)
        unheard: Exception | None = None
        for pending, outcome in zip(group, outcomes, strict=True):
            if pending.future.done():
                unheard = outcome if isinstance(outcome, Exception) else unheard
                continue
            if isinstance(outcome, Exception):
                pending.future.set_exception(outcome)
            else:
                pending.future.set_result(outcome)
        if unheard is not None:
            cause = getattr(unheard, "orig", None) or unheard
            logger.error("a commit failed after its requests gave up", extra={"fields": {"cause": str(cause)[:500]}})
        if self._pending:
            loop.call_soon(self._next, loop)
        else:
            self._busy = False
