"""Waits at the end of epochs: which reports are missing, and when the requests that wait for them are let go.

The store is read once for each epoch that is waited for; from then on every report that this server commits is crossed
out in memory, so that neither a thousand ranks that wait nor their requests cost a query each.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from curation.service.errors import Refusal
from curation.service.session.session import Report
from curation.service.session.spec import Grace
from curation.service.store import SessionRow
from curation.service.store.reports import Ignored, Write

CLIENT_GONE: ContextVar[Callable[[], Coroutine[Any, Any, NoReturn]] | None] = ContextVar("client_gone", default=None)
"""Of the request that runs: waits until its client leaves, and raises then. None: nobody can tell."""


class EpochWait:
    """The opening of an epoch that waits for reports of the one before.

    Args:
        row: the session.
        number: the epoch.
    """

    def __init__(self, row: SessionRow, number: int) -> None:
        self.session, self.generation, self.number = row.id, row.generation, number
        self.begun = time.monotonic()
        self.rule = row.spec.on_missing
        self.waiting = 0
        self.poll: asyncio.Task[None] | None = None
        self.known = False
        self.closed = False
        self.left = 0
        self._world_size = self._first = 0
        self._due, self._left_of = np.zeros((0, 0), bool), np.zeros(0, np.int64)
        self._early: list[tuple[int, int]] = []
        self._signal = asyncio.Event()
        self._refusal: Refusal | None = None

    def looked(self, missing: npt.NDArray[np.int64], world_size: int) -> None:
        """Take in what the store lacks: int64[m, 2] (rank, step); less what came while it was read.

        ``world_size``: the ranks whose reports the epoch before waits for, which a resize may have changed.
        """
        self._world_size = world_size
        self._first = int(missing[:, 1].min()) if len(missing) else 0
        steps = int(missing[:, 1].max()) + 1 - self._first if len(missing) else 0
        self._left_of = np.bincount(missing[:, 0], minlength=self._world_size)
        self._due = np.zeros((steps, len(self._left_of)), bool)
        self._due[missing[:, 1] - self._first, missing[:, 0]] = True
        self.left = len(missing)
        self.known, self._refusal = True, None
        early, self._early = self._early, []
        self.arrived(early)

    def committed(self, reports: Sequence[Report]) -> None:
        """Cross out reports that are on disk now."""
        places = [(report.rank, report.step) for report in reports]
        if self.known:
            self.arrived(places)
        else:
            self._early += places

    def arrived(self, places: Iterable[tuple[int, int]]) -> None:
        """Cross out some (rank, step)."""
        before, opens_in = self.left, self.opens_in()
        for rank, step in places:
            at = step - self._first
            if 0 <= at < len(self._due) and rank < len(self._left_of) and self._due[at, rank]:
                self._due[at, rank] = False
                self._left_of[rank] -= 1
                self.left -= 1
        if self.left < before:
            self._refusal = None
            if (now := self.opens_in()) < opens_in and (now == 0 or opens_in == float("inf")):
                self.let_go()

    def doubt(self) -> None:
        """Have the store looked at again."""
        self.known = False
        self.let_go()

    def missing(self, most: int) -> npt.NDArray[np.int64]:
        """int64[m, 2]: the first (rank, step) that are missing, by step."""
        places = np.argwhere(self._due)[:most]
        return np.stack([places[:, 1], places[:, 0] + self._first], axis=1)

    def late_ranks(self) -> npt.NDArray[np.int64]:
        """int64[r]: the ranks that are waited for."""
        return np.flatnonzero(self._left_of)

    def opens_in(self) -> float:
        """Seconds until the epoch opens without another report; 0: now, inf: only reports open it."""
        if self.left == 0 or self.closed or self.rule == "skip":
            return 0.0
        if not isinstance(self.rule, Grace):
            return float("inf")
        if self.rule.quorum and np.count_nonzero(self._left_of == 0) < self.rule.quorum * self._world_size:
            return float("inf")
        return max(0.0, self.begun + self.rule.after_seconds - time.monotonic())

    def refusal(self) -> Refusal:
        """The answer to a request that has waited long enough."""
        if self._refusal is None:
            self._refusal = _missing_reports(self.number, self.left, self.late_ranks(), self.missing(100))
        return self._refusal

    def let_go(self) -> None:
        """Have all requests that wait look again."""
        self._signal.set()
        self._signal = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to look at, and no longer than so many seconds."""
        self.waiting += 1
        try:
            await wait_for(self._signal, seconds)
        finally:
            self.waiting -= 1


class EpochWaits:
    """What the sessions of one server wait for, by their keys; at most one epoch each."""

    def __init__(self) -> None:
        self._waits: dict[int, EpochWait] = {}

    def __iter__(self) -> Iterator[EpochWait]:
        return iter(list(self._waits.values()))

    def of(self, key: int) -> EpochWait | None:
        """What a session waits for."""
        return self._waits.get(key)

    def begin(self, row: SessionRow, number: int) -> EpochWait:
        """The wait for an epoch; it begins now, unless it has begun."""
        wait = self._waits.get(row.key)
        if wait is None or (wait.generation, wait.number) != (row.generation, number):
            self.end(row.key)
            wait = self._waits[row.key] = EpochWait(row, number)
        wait.rule = row.spec.on_missing
        return wait

    def end(self, key: int) -> None:
        """Forget what a session waits for, because the epoch is open or the session has changed."""
        wait = self._waits.pop(key, None)
        if wait is not None:
            wait.let_go()

    def committed(self, writes: Sequence[Write], outcomes: Sequence[Ignored | Exception]) -> None:
        """Take note of reports that went to the disk, or (after an error) may have."""
        if not self._waits:
            return
        for write, outcome in zip(writes, outcomes, strict=True):
            wait = self._waits.get(write.key)
            if wait is None or not write.reports or write.generation != wait.generation:
                continue
            if isinstance(outcome, Exception):
                wait.doubt()
            else:
                wait.committed(write.reports)


async def wait_for(signal: asyncio.Event, seconds: float) -> bool:
    """Wait for a signal, and no longer than so many seconds; whether it came.

    Raises what :data:`CLIENT_GONE` does where the client of the request that waits leaves: a peer that asks and hangs
    up again and again would otherwise hold as many requests as it likes.
    """
    client_gone = CLIENT_GONE.get()
    came = asyncio.create_task(signal.wait())
    gone = None if client_gone is None else asyncio.create_task(client_gone())
    tasks: set[asyncio.Task[Any]] = {came} if gone is None else {came, gone}
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gone is not None and gone.done():
            gone.result()
        return came.done()
    finally:
        for task in tasks:
            task.cancel()


def _missing_reports(number: int, count: int, ranks: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> Refusal:
    names = ", ".join(map(str, ranks[:8].tolist())) + (", ..." if len(ranks) > 8 else "")
    rank, step = first[0].tolist()
    return Refusal(
        "missing-reports",
        f"epoch {number} waits for {count} reports of epoch {number - 1}, of {len(ranks)} ranks: {names}; the first of "
        f"rank {rank}, step {step}. What this request reported is stored. Ask again, or go on without them "
        f"(POST .../close-epoch)",
        retry_after=1,
        missing=[{"rank": int(rank), "step": int(step)} for rank, step in first],
        missing_count=count,
        missing_ranks=ranks[:100].tolist(),
    )
