"""Sessions of a running server: loaded from the store, opened epoch by epoch as reports come in, served from memory.

What it holds in memory can be lost at any moment: the store has all it takes to compute it again. Work in O(N) runs in
threads, once for all requests that wait for it, and goes on when they give up.
"""

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from curation.service.errors import Refusal
from curation.service.manager.group_commit import PIECE_BYTES, GroupCommit, pieces, size_of
from curation.service.manager.identity import check_alike, digest_of, first_generation
from curation.service.manager.memory.entry import Entry, build_session, check_base, check_generation
from curation.service.manager.memory.making import EpochMaker
from curation.service.manager.memory.residency import Residency
from curation.service.manager.progress import Progress, missing_reports
from curation.service.manager.waiting import EpochWait, EpochWaits
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.session.methods.registry import method_kind
from curation.service.session.protocols import Epoch
from curation.service.session.session import Batch, EpochRecord, Report, Session, StepRequest
from curation.service.session.spec import SessionSpec, SpecChange
from curation.service.store import SessionRow, Store
from curation.service.store.blobs import Bytes
from curation.service.store.reports import Ignored, Write

T = TypeVar("T")
MAX_SESSIONS = 4096
TRIES = 3
POLL_SECONDS = 0.1
"""Between two looks at a shared store for what other replicas were sent."""
_POLLED = 500


class SessionManager:
    """All sessions of one server.

    Args:
        store: where they are kept.
        resident_bytes: what their epochs may take in memory; those unused for longest go.
        max_wait: seconds for which a request may wait for other ranks.
        metrics: takes in commits, epochs and evictions.
        check_caller: raises ``Refusal`` where the caller of a request that waited may not have its answer any more.
    """

    def __init__(
        self,
        store: Store,
        *,
        resident_bytes: int,
        max_wait: float = 30,
        metrics: Metrics | None = None,
        check_caller: Callable[[Caller], Awaitable[None]] | None = None,
    ) -> None:
        self.store = store
        self.waits = EpochWaits()
        self.max_wait = max_wait
        self._metrics = metrics or Metrics()
        self._check_caller = check_caller
        self.group_commit = GroupCommit(store, self._metrics, self._committed)
        self._rewinds: dict[tuple[int, str], asyncio.Task[Entry]] = {}
        self._changes: set[asyncio.Task[Any]] = set()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Entry]] = {}
        self._load_again: set[str] = set()
        self._by_key: dict[int, Entry] = {}
        self._seen: dict[int, dict[int, float]] = {}
        self.residency = Residency(resident_bytes)
        self.maker = EpochMaker(store)

    @property
    def in_memory(self) -> list[Entry]:
        """The sessions that are in memory now."""
        return list(self._entries.values())

    async def create(
        self, caller: Caller, id: str, spec: SessionSpec, size: int, tables: dict[str, Bytes]
    ) -> tuple[Entry, bool]:
        """A new session; or the one of that id, if it was created alike (then the second value is False).

        Raises:
            Refusal: the parameters are wrong, or the id belongs to another session.
        """
        session = await asyncio.to_thread(build_session, spec, size, tables, [])
        digest = await asyncio.to_thread(digest_of, spec, size, tables)
        about = (spec, size, tables, first_generation(), digest)
        row = await asyncio.to_thread(self.store.create, id, caller, *about)
        if row is None:
            entry = await self.taken(caller, id)
            await asyncio.to_thread(check_alike, self.store, entry.row, spec, size, tables)
            return entry, False
        entry = Entry(row, session, Progress(self.store, row.key))
        self._insert(entry)
        return entry, True

    async def taken(self, caller: Caller, id: str) -> Entry:
        """The session whose id a new one asks for, as the store has it now.

        Raises:
            Refusal: the caller may not use it.
        """
        try:
            return await self.current(caller, id)
        except Refusal as refusal:
            if refusal.kind != "not-found":
                raise
            raise Refusal("id-taken", f"there is another session {id!r}: leave the id out, or choose another") from None

    def keep_epoch(self, entry: Entry, number: int, epoch: Epoch) -> None:
        """Have an epoch in memory that was made elsewhere, where the sessions in use leave room."""
        if entry.session.epoch(number) is None and self.residency.make_room(entry, epoch.nbytes, self.in_memory):
            entry.session.put(number, entry.session.laid_out(number, epoch))

    async def entry(self, caller: Caller, id: str) -> Entry:
        """A session that the caller may use.

        Raises:
            Refusal: there is none of that id, or it is another owner's, which is answered alike.
        """
        entry = self._entries.get(id)
        if not caller.everyone and (entry is None or not caller.may_use(entry.row.owner)):
            # Asked before it is loaded, since others' sessions may have to go for it.
            if not caller.may_use(await asyncio.to_thread(self.store.owner_of, id)):
                raise _no_session(id)
            entry = self._entries.get(id)
            if entry is not None and not caller.may_use(entry.row.owner):
                self.evict(id)  # it was given to another owner since it was loaded
                entry = None
        if entry is None:
            task = self._loading.get(id)
            if task is None:
                task = self._loading[id] = asyncio.create_task(self._load(id))
                task.add_done_callback(lambda _: self._loading.pop(id, None))
            entry = await asyncio.shield(task)
        else:
            self._entries.move_to_end(id)
        entry.tenure.used = time.monotonic()
        return entry

    def evict(self, id: str) -> None:
        """Drop what is in memory of a session."""
        entry = self._entries.pop(id, None)
        if entry is not None:
            self._by_key.pop(entry.row.key, None)
        if id in self._loading:
            self._load_again.add(id)  # what it reads may be of before

    def evict_owners(self, owners: Set[str]) -> None:
        """Drop what is in memory of some owners' sessions, which are others' now."""
        for id in [id for id, entry in self._entries.items() if entry.row.owner in owners]:
            self.evict(id)

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

    async def current(self, caller: Caller, id: str) -> Entry:
        """As :meth:`entry`, but as the store has it now, where other replicas may have changed it."""
        known = self._entries.get(id)
        if self.store.shared and known is not None:
            await self._look(known)
        return await self.entry(caller, id)

    async def rewind(self, caller: Caller, id: str, step: int, request: str | None = None) -> Entry:
        """Go back to a step: what was reported for it and for later ones is forgotten.

        ``request`` names this rewind: of several that name the same, one is carried out.

        Raises:
            Refusal: the step's epoch was never open.
        """
        entry, name = await self.current(caller, id), request or secrets.token_hex(8)
        place = entry.row.key, name
        task = self._rewinds.get(place)
        if task is None:
            task = self._rewinds[place] = asyncio.create_task(self._rewind(caller, id, step, name))
            task.add_done_callback(lambda done: (self._rewinds.pop(place), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def change(self, caller: Caller, id: str, change: SpecChange) -> Entry:
        """Give a session other parameters, of those that may change.

        Raises:
            Refusal: they are wrong, or take away what was handed out.
        """
        for _ in range(TRIES):
            entry = await self.current(caller, id)
            row = entry.row
            try:
                spec = row.spec.changed(change)
            except ValueError as error:
                raise Refusal("bad-parameters", str(error)) from error
            if spec == row.spec:
                return entry
            try:
                await self.carry_out(entry, partial(self._change, row, spec, caller))
            except Refusal as refusal:
                if refusal.kind != "session-changed":
                    raise
        return await self.current(caller, id)

    async def close_epoch(self, caller: Caller, id: str, epoch: int) -> Entry:
        """Go on from an epoch without the reports that are missing of it; nothing to do where the next one is open.

        Raises:
            Refusal: the epoch is not open, or is the last one, or the method needs no reports.
        """
        entry = await self.current(caller, id)
        session, row = entry.session, entry.row
        if not session.method.stateful:
            raise Refusal("other-method", f"epochs of {row.spec.method} wait for no reports: there is nothing to close")
        if epoch < 0 or epoch >= session.open_epochs:
            raise Refusal("epoch-not-open", f"epoch {epoch} is not open yet: {session.open_epochs} epochs are")
        if epoch + 1 == row.spec.epochs:
            raise Refusal("bad-step", f"epoch {epoch} is the session's last: nothing waits for its reports")
        if epoch + 1 == session.open_epochs:
            await asyncio.to_thread(self.store.note, row, caller, "session.close-epoch", epoch=epoch)
        while epoch + 1 >= session.open_epochs:
            wait = self.waits.begin(row, epoch + 1)
            wait.closed = True
            wait.let_go()
            try:
                await self.epoch(entry, epoch + 1)
            except Refusal as refusal:
                if refusal.kind != "missing-reports":  # of an opening that began before this
                    raise
        return entry

    async def delete(self, caller: Caller, id: str) -> None:
        """Forget a session for good."""
        entry = await self.current(caller, id)
        try:
            await self.carry_out(entry, partial(self.store.delete_session, entry.row.key, caller))
        finally:
            self.waits.end(entry.row.key)
            self._seen.pop(entry.row.key, None)

    async def carry_out(self, entry: Entry, work: Callable[[], T]) -> T:
        """Change a session in the store. What is in memory of it goes in any case: also if the request gives up
        meanwhile, since the change is made nevertheless."""

        async def change() -> T:
            try:
                return await asyncio.to_thread(work)
            finally:
                self.forget(entry)

        task = asyncio.create_task(change())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

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

    async def _cross_out(self, entry: Entry, wait: EpochWait) -> bool:
        """Cross out the reports that other replicas stored; whether there is no need to look again."""
        await self._look(entry)
        if entry.outdated or entry.session.open_epochs > wait.number:
            self.waits.end(entry.row.key)
            return True
        while wait.known and wait.left:
            arrived = await asyncio.to_thread(self.store.arrived, entry.row.key, wait.missing(_POLLED))
            wait.arrived(arrived)
            if not arrived:
                return False
        return True

    async def _rewind(self, caller: Caller, id: str, step: int, request: str) -> Entry:
        for _ in range(TRIES):
            entry = await self.current(caller, id)
            session, row = entry.session, entry.row
            if row.last_rewind == request:
                return entry
            if step < 0 or step > session.known_steps:
                raise Refusal("bad-step", f"step {step} was never handed out: {session.open_range}")
            last = max(session.open_epochs - 1, 0)
            epoch = session.epoch_of(step) if step < session.known_steps else last
            check_base(row, epoch)
            try:
                await asyncio.to_thread(self.store.rewind, row.key, row.generation, step, epoch, caller, request)
            except Refusal as refusal:
                if refusal.kind != "session-changed":
                    raise
            finally:
                self.forget(entry)
        raise Refusal("session-changed", "the session is rewound by others again and again", retry_after=1)

    def _change(self, row: SessionRow, spec: SessionSpec, caller: Caller) -> None:
        build_session(spec, row.size, self.store.tables(row.key), [])
        self.store.change(row, spec, caller)

    def forget(self, entry: Entry) -> None:
        """Drop what is in memory of a session that was changed; who waits for its epoch looks again."""
        entry.outdated = True
        self._seen[entry.row.key] = entry.seen
        self.evict(entry.row.id)
        wait = self.waits.of(entry.row.key)
        if wait is not None:
            wait.doubt()

    async def _check_reports(self, session: Session[Any], reports: Sequence[Report]) -> None:
        def check() -> None:
            for report in reports:
                session.check_report(report)
                session.check_due(report)

        if size_of(reports) <= PIECE_BYTES:
            check()
        else:
            await asyncio.to_thread(check)

    async def _load(self, id: str) -> Entry:
        while True:
            self._load_again.discard(id)
            entry = await asyncio.to_thread(self._from_store, id)
            if id not in self._load_again:
                self._insert(entry)
                return entry

    def _from_store(self, id: str) -> Entry:
        row = self.store.session(id)
        if row is not None and row.generation < 0:
            self.store.finish_rewind(row)
            row = self.store.session(id)
        if row is None:
            raise _no_session(id)
        segments = self.store.segments(row.key)
        tables = self.store.tables(row.key)
        session = build_session(row.spec, row.size, tables, self.store.records(row), segments)
        return Entry(row, session, Progress(self.store, row.key))

    def _insert(self, entry: Entry) -> None:
        entry.seen.update(self._seen.pop(entry.row.key, {}))
        self._entries[entry.row.id] = self._by_key[entry.row.key] = entry
        if not entry.session.method.stateful:
            entry.tenure.until = math.inf  # what it has in memory is made with the session
        self.residency.make_room(entry, entry.nbytes, self.in_memory)
        while len(self._entries) > MAX_SESSIONS:
            key = next(iter(self._entries.values())).row.key
            self.evict(next(iter(self._entries)))
            wait = self.waits.of(key)
            if wait is not None and not wait.waiting:
                self.waits.end(key)

    def _committed(self, writes: Sequence[Write], outcomes: Sequence[Ignored | Exception]) -> None:
        self.waits.committed(writes, outcomes)
        for write, outcome in zip(writes, outcomes, strict=True):
            entry = self._by_key.get(write.key)
            stored = write.reports and not isinstance(outcome, Exception)
            if stored and entry is not None and entry.row.generation == write.generation:
                entry.progress.stored(write.reports)

    async def _has_changed(self, entry: Entry, open_epochs: int) -> bool:
        """Whether the store has a session otherwise than it was judged by."""
        await self._look(entry)
        return entry.outdated or entry.session.open_epochs != open_epochs

    async def _look(self, entry: Entry) -> None:
        """Take in what other replicas did to a session; one look, begun from now on, for all that ask."""
        before = entry.look
        if before is not None and not before.done():
            await asyncio.wait([before])
        if entry.look is before:
            entry.look = asyncio.create_task(self._look_once(entry))
        assert entry.look is not None
        await asyncio.shield(entry.look)

    async def _look_once(self, entry: Entry) -> None:
        row, records = await asyncio.to_thread(self._newer, entry.row, entry.session.open_epochs)
        for record in records:
            entry.session.opened(record)
        if row != entry.row:
            self.forget(entry)
            if row is None or row.key != entry.row.key:
                self.waits.end(entry.row.key)
                self._seen.pop(entry.row.key, None)

    def _newer(self, row: SessionRow, first: int) -> tuple[SessionRow | None, Sequence[EpochRecord]]:
        stored = self.store.session(row.id)
        return stored, self.store.records(row, first) if stored == row else ()

    async def epoch(self, entry: Entry, number: int) -> Epoch | None:
        """Open an epoch, or compute it again; None where the method makes it on the spot.

        It is returned because requests for other epochs may push it out of memory before the caller goes on.
        """
        task = entry.tasks.get(number)
        if task is None:
            task = entry.tasks[number] = asyncio.create_task(self._open_or_compute(entry, number))
            task.add_done_callback(lambda done: (entry.tasks.pop(number, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _open_or_compute(self, entry: Entry, number: int) -> Epoch | None:
        session, row = entry.session, entry.row
        start = time.perf_counter()
        if number < session.open_epochs:
            epoch = session.epoch(number)
            if epoch is None and session.method.stateful:
                async with self._making(entry):
                    epoch = await asyncio.to_thread(self.maker.compute, row, session, number)
                    session.put(number, epoch)
                self._metrics.computed_again.observe(time.perf_counter() - start)
        else:
            missing = await self._missing(entry, number) if number else np.empty((0, 2), np.int64)
            async with self._making(entry):
                record, epoch = await asyncio.to_thread(self.maker.open, row, session, number, missing)
                self._opened(entry, record, epoch)
            self._metrics.opened.observe(time.perf_counter() - start)
            self.waits.end(row.key)
        return epoch

    def _opened(self, entry: Entry, record: EpochRecord, epoch: Epoch | None) -> None:
        """Take in an epoch; also where the session was read from the store anew meanwhile, and so maybe without it."""
        entry.session.opened(record, epoch)
        now, row = self._entries.get(entry.id), entry.row
        if now is None and entry.id in self._loading:
            self._load_again.add(entry.id)
        elif now is not None and (now.row.key, now.row.generation) == (row.key, row.generation):
            now.session.opened(record, epoch)

    @asynccontextmanager
    async def _making(self, entry: Entry) -> AsyncIterator[None]:
        """Room for an epoch that is made; see :meth:`Residency.room`."""
        needed = method_kind(entry.row.spec.method).bytes_per_candidate * entry.row.size
        async with self.residency.room(entry, needed, lambda: list(self._entries.values())):
            entry.making += 1
            try:
                yield
            finally:
                entry.making -= 1

    async def _missing(self, entry: Entry, number: int) -> np.ndarray[Any, Any]:
        """int64[m, 2]: (rank, step) of the epoch before that an epoch opens without.

        Raises:
            Refusal: it waits for them.
        """
        wait = self.waits.begin(entry.row, number)
        if wait.known and self.store.shared:
            await self._cross_out(entry, wait)
        if wait.known and wait.opens_in() > 0:
            raise wait.refusal()
        before = entry.session.records[number - 1]
        missing = await asyncio.to_thread(missing_reports, self.store, entry.row.key, before)
        wait.looked(missing, before.laid_out.parts[-1].split.world_size)
        if wait.opens_in() > 0:
            raise wait.refusal()
        return missing


def _no_session(id: str) -> Refusal:
    return Refusal("not-found", f"there is no session {id!r}")
