"""Steps: reports are stored, and the batch asked for is answered, once the reports it depends on are there."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from curation.service.errors import Refusal
from curation.service.manager.group_commit import PIECE_BYTES, GroupCommit, pieces, size_of
from curation.service.manager.memory.entry import Entry, check_base, check_generation
from curation.service.manager.memory.openings import EpochOpenings
from curation.service.manager.waiting import EpochWait
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.session.session import Batch, Report, Session, StepRequest
from curation.service.store import Store
from curation.service.store.reports import Ignored, Write

TRIES = 3
POLL_SECONDS = 0.1
"""Between two looks at a shared store for what other replicas were sent."""


class Stepping(EpochOpenings):
    """The sessions in memory, taking steps.

    Args:
        store, resident_bytes, metrics: see :class:`EpochOpenings`.
        max_wait: seconds for which a request may wait for other ranks.
        check_caller: raises ``Refusal`` where the caller of a request that waited may not have its answer any more.
    """

    def __init__(
        self,
        store: Store,
        resident_bytes: int,
        metrics: Metrics,
        max_wait: float,
        check_caller: Callable[[Caller], Awaitable[None]] | None,
    ) -> None:
        super().__init__(store, resident_bytes, metrics)
        self.max_wait = max_wait
        self.group_commit = GroupCommit(store, metrics, self._committed)
        self._check_caller = check_caller

    async def step(self, caller: Caller, id: str, request: StepRequest) -> tuple[Batch | None, int, Ignored]:
        """Store the reports, then answer with the batch asked for (None where none was), the generation, and the steps
        whose report is not the one that came first.

        Where other ranks' reports are missing, it waits for them for as long as the request says.

        Raises:
            Refusal: nothing was changed, unless the kind is ``missing-reports``: then the reports are stored.
        """
        deadline = time.monotonic() + min(request.wait, self.max_wait)
        tries, looked_again, ignored = 0, False, list[int]()
        while True:
            entry = self._entries.get(id)
            open_epochs = entry.session.open_epochs if entry else 0
            try:
                entry = await self.entry(caller, id)
                open_epochs = entry.session.open_epochs
                batch = await self._step(entry, request, ignored)
                ends = self.store.shared and batch is not None and batch.end_of_session
                if not ends or not await self._has_changed(entry, open_epochs):
                    entry.waits.pop(request.rank, None)
                    return batch, entry.row.generation, ignored
            except Refusal as refusal:
                if refusal.kind == "missing-reports" and entry is not None:
                    entry.waits[request.rank] = time.monotonic()
                    if not request.wait or not await self._wait(entry, deadline):
                        if looked_again or not self.store.shared or not await self._has_all(entry):
                            raise
                        looked_again = True
                    await self.waited(caller)
                    request = request._replace(reports=())  # they are stored
                    continue
                tries += 1
                if refusal.kind == "session-changed":
                    self.evict(id)
                # What is in memory may refuse only what the store, as it is now, refuses as well.
                elif entry is None or not self.store.shared or not await self._has_changed(entry, open_epochs):
                    raise
                if tries == TRIES:
                    raise

    async def waited(self, caller: Caller) -> None:
        """Look again at the caller of a request that waited, before it is answered.

        Raises:
            Refusal: its token has ended meanwhile.
        """
        if self._check_caller is not None:
            await self._check_caller(caller)

    def let_go(self) -> None:
        """Answer all requests that wait for other ranks, because the server stops."""
        self.max_wait = 0
        for wait in self.waits:
            wait.let_go()

    async def _step(self, entry: Entry, request: StepRequest, ignored: list[int]) -> Batch | None:
        session, row = entry.session, entry.row
        session.check_rank(request.rank)
        entry.seen[request.rank] = time.time()
        if session.open_epochs == 0:
            await self.epoch(entry, 0)
        newest = max((report.step for report in request.reports), default=-1)
        if self.store.shared and max(newest, -1 if request.step is None else request.step) >= session.known_steps:
            await self._look(entry)
        check_generation(row, request.generation)
        if request.step is not None:
            check_base(row, session.epoch_of(request.step))
        for report in request.reports:
            if request.step is not None and report.step >= request.step:
                raise Refusal(
                    "bad-report",
                    f"step {report.step} is reported, but is not earlier than {request.step}, the one asked for",
                    rank=report.rank,
                    step=report.step,
                )
        await self._check_reports(session, request.reports)
        if request.reports or self.store.shared:
            differing: list[int] = []
            for reports in pieces(request.reports):
                differing += await self.group_commit.submit(row.key, row.generation, reports)
            if request.reports:
                ignored[:] = differing
        if request.step is None:
            return None
        number = session.epoch_of(request.step)
        epoch = session.epoch(number)
        if epoch is None and (session.method.stateful or number >= session.open_epochs):
            epoch = await self.epoch(entry, number)
        entry.asked[request.rank] = max(request.step, entry.asked.get(request.rank, -1))
        return session.batch(request.rank, request.step, epoch)

    async def _wait(self, entry: Entry, deadline: float) -> bool:
        """Wait for the reports that an epoch waits for; False where time is over."""
        while True:
            wait = self.waits.of(entry.row.key)
            if wait is None or not wait.known or wait.generation != entry.row.generation:
                return True
            opens_in = wait.opens_in()
            left = min(deadline, time.monotonic() + self.max_wait) - time.monotonic()
            if opens_in == 0 or left <= 0:
                return opens_in == 0
            if self.store.shared and (wait.poll is None or wait.poll.done()):
                wait.poll = asyncio.create_task(self._poll(entry, wait))
            await wait.wait(min(left, opens_in))

    async def _poll(self, entry: Entry, wait: EpochWait) -> None:
        """Look for what other replicas were sent, for as long as requests wait for it."""
        await asyncio.sleep(POLL_SECONDS)
        try:
            while wait.waiting and not await self._cross_out(entry, wait):
                await asyncio.sleep(POLL_SECONDS)
        except Exception:
            wait.doubt()  # those who wait look themselves, and are told

    async def _has_all(self, entry: Entry) -> bool:
        """Whether an epoch waits for nothing any more, after a look that begins now: the one that a request was judged
        by may have begun before it came, or before other replicas stored what was missing."""
        wait = self.waits.of(entry.row.key)
        return wait is None or not wait.known or (await self._cross_out(entry, wait) or wait.opens_in() == 0)

    async def _has_changed(self, entry: Entry, open_epochs: int) -> bool:
        """Whether the store has a session otherwise than it was judged by."""
        await self._look(entry)
        return entry.outdated or entry.session.open_epochs != open_epochs

    async def _check_reports(self, session: Session[Any], reports: Sequence[Report]) -> None:
        def check() -> None:
            for report in reports:
                session.check_report(report)
                session.check_due(report)

        if size_of(reports) <= PIECE_BYTES:
            check()
        else:
            await asyncio.to_thread(check)

    def _committed(self, writes: Sequence[Write], outcomes: Sequence[Ignored | Exception]) -> None:
        self.waits.committed(writes, outcomes)
        for write, outcome in zip(writes, outcomes, strict=True):
            entry = self._by_key.get(write.key)
            stored = write.reports and not isinstance(outcome, Exception)
            if stored and entry is not None and entry.row.generation == write.generation:
                entry.progress.stored(write.reports)
