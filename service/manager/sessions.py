"""Sessions of a running server: loaded from the store, opened epoch by epoch as reports come in, served from memory.

What it holds in memory can be lost at any moment: the store has all it takes to compute it again. Work in O(N) runs in
threads, once for all requests that wait for it, and goes on when they give up.
"""

import asyncio
import math
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation.service.arrow import write_table
from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.manager.group_commit import GroupCommit
from curation.service.manager.memory.residency import Residency, Tenure
from curation.service.manager.memory.spool import Spool
from curation.service.manager.progress import Progress
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.session.methods.registry import make_method, method_kind
from curation.service.session.protocols import Epoch, Indices, Losses, State
from curation.service.session.segments import Segment
from curation.service.session.session import Batch, EpochRecord, Session, StepRequest
from curation.service.session.spec import SessionSpec
from curation.service.store import SessionRow, Store
from curation.service.store.reports import Write

MAX_SESSIONS = 4096
RECENT_SECONDS = 60.0
"""A session is at work, and a rank waits, if it asked so short a time ago."""


@dataclass
class Entry:
    """A session in memory.

    ``asked``: the last step that each rank asked this server for; ``seen``: when it last sent anything, in seconds
    since 1970; ``waits``: when it was last told to wait for others; ``used``: when a rank was last answered. The last
    two are of :func:`time.monotonic`.
    """

    row: SessionRow
    session: Session[Any]
    progress: Progress
    asked: dict[int, int] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    tasks: "dict[int, asyncio.Task[Epoch | None]]" = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)
    used: float = float("-inf")
    tenure: Tenure = field(default_factory=Tenure)
    making: int = 0

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def nbytes(self) -> int:
        return self.session.nbytes

    @property
    def working(self) -> bool:
        return self.making > 0

    def release(self) -> None:
        self.session.forget_epochs()

    def waiting(self, now: float) -> list[int]:
        """The ranks that wait for other ranks' reports."""
        return [rank for rank, at in list(self.waits.items()) if now - at < RECENT_SECONDS]

    def state(self, now: float) -> str:
        """``waiting`` (a rank for others), ``finished`` (each rank had its last step), ``running`` or ``idle``."""
        if self.waiting(now):
            return "waiting"
        asked = list(self.asked.values())
        if len(asked) == self.row.spec.world_size and min(asked) + 1 == self.session.total_steps:
            return "finished"
        return "running" if now - self.used < RECENT_SECONDS else "idle"


class SessionManager:
    """All sessions of one server.

    Args:
        store: where they are kept.
        resident_bytes: what their epochs may take in memory; those unused for longest go.
        metrics: takes in commits, epochs and evictions.
    """

    def __init__(self, store: Store, *, resident_bytes: int, metrics: Metrics | None = None) -> None:
        self.store = store
        self._metrics = metrics or Metrics()
        self.group_commit = GroupCommit(store, self._metrics, self._stored)
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._by_key: dict[int, Entry] = {}
        self._loading: dict[str, asyncio.Task[Entry]] = {}
        self.residency = Residency(resident_bytes)

    @property
    def in_memory(self) -> list[Entry]:
        """The sessions that are in memory now."""
        return list(self._entries.values())

    async def create(
        self, caller: Caller, id: str, spec: SessionSpec, size: int, tables: dict[str, bytes]
    ) -> tuple[Entry, bool]:
        """A new session; or the one of that id, if it was created alike (then the second value is False).

        Raises:
            Refusal: the parameters are wrong, or the id belongs to another session.
        """
        session = await asyncio.to_thread(_build_session, spec, size, tables, [])
        row = await asyncio.to_thread(self.store.create, id, caller, spec, size, tables)
        if row is None:
            taken = Refusal("id-taken", f"there is another session {id!r}: leave the id out, or choose another")
            try:
                entry = await self.entry(caller, id)
            except Refusal as refusal:
                raise (taken if refusal.kind == "not-found" else refusal) from None
            if entry.row.size != size or not await asyncio.to_thread(self._alike, entry.row, spec, tables):
                raise taken
            return entry, False
        entry = Entry(row, session, Progress(self.store, row.key))
        self._insert(entry)
        return entry, True

    def _alike(self, row: SessionRow, spec: SessionSpec, tables: dict[str, bytes]) -> bool:
        """Whether a session was created of the same; release 0.1 kept tables that came as JSON in the spec."""
        stored = self.store.tables(row.key)
        kind = method_kind(row.spec.method)
        inline = kind.to_table(row.spec) if kind.table is not None and not stored else None
        if inline is not None and kind.table is not None:
            return inline[0] == spec and {kind.table: write_table(inline[1])} == tables
        return row.spec == spec and stored == tables

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

    def evict_owners(self, owners: Set[str]) -> None:
        """Drop what is in memory of some owners' sessions, which are others' now."""
        for id in [id for id, entry in self._entries.items() if entry.row.owner in owners]:
            self.evict(id)

    async def step(self, caller: Caller, id: str, request: StepRequest) -> tuple[Batch | None, int]:
        """Store the reports, then answer with the batch asked for (None where none was) and the generation.

        Raises:
            Refusal: nothing was changed, unless the kind is ``missing-reports``: then the reports are stored.
        """
        changed: Refusal | None = None
        for _ in range(3):
            entry = await self.entry(caller, id)
            try:
                batch = await self._step(entry, request)
            except Refusal as refusal:
                if refusal.kind == "missing-reports":
                    entry.waits[request.rank] = time.monotonic()
                if refusal.kind != "session-changed":
                    raise
                self.evict(id)
                changed = refusal
            else:
                entry.used = time.monotonic()
                entry.waits.pop(request.rank, None)
                return batch, entry.row.generation
        assert changed is not None
        raise changed

    async def current(self, caller: Caller, id: str) -> Entry:
        """As :meth:`entry`, but as the store has it now, where other replicas may have changed it."""
        entry = await self.entry(caller, id)
        if self.store.shared:
            row = await asyncio.to_thread(self.store.session, id)
            if row is None or row != entry.row:
                self.evict(id)
                return await self.entry(caller, id)
            await self._catch_up(entry)
        return entry

    async def rewind(self, caller: Caller, id: str, step: int) -> Entry:
        """Go back to a step: what was reported for it and for later ones is forgotten.

        Raises:
            Refusal: the step's epoch was never open.
        """
        entry = await self.current(caller, id)
        session, row = entry.session, entry.row
        if step < 0 or step > session.known_steps:
            raise Refusal("bad-step", f"step {step} was never handed out: {session.open_range}")
        last = max(session.open_epochs - 1, 0)
        epoch = session.epoch_of(step) if step < session.known_steps else last
        check_base(row, epoch)
        await asyncio.shield(asyncio.create_task(self._rewind(row, step, epoch, caller)))
        return await self.entry(caller, id)

    async def delete(self, caller: Caller, id: str) -> None:
        """Forget a session for good."""
        entry = await self.entry(caller, id)
        await asyncio.to_thread(self.store.delete_session, entry.row.key, caller)
        self.evict(id)

    async def _rewind(self, row: SessionRow, step: int, epoch: int, caller: Caller) -> None:
        """To its end, even where the client gives up: what is in memory must not outlive it."""
        try:
            await asyncio.to_thread(self.store.rewind, row.key, row.generation, step, epoch, caller)
        finally:
            self.evict(row.id)

    async def epoch(self, entry: Entry, number: int) -> Epoch | None:
        """An open epoch's order, computed again where needed."""
        return await self._ensure_epoch(entry, number)

    async def _step(self, entry: Entry, request: StepRequest) -> Batch | None:
        session, row = entry.session, entry.row
        session.check_rank(request.rank)
        entry.seen[request.rank] = time.time()
        if session.open_epochs == 0:
            await self._ensure_epoch(entry, 0)
        newest = max((report.step for report in request.reports), default=-1)
        if self.store.shared and max(newest, -1 if request.step is None else request.step) >= session.known_steps:
            await self._catch_up(entry)
        check_generation(row, request.generation)
        if request.step is not None:
            check_base(row, session.epoch_of(request.step))
        for report in request.reports:
            if request.step is not None and report.step >= request.step:
                raise Refusal(
                    "bad-report",
                    f"step {report.step} is reported, but is not earlier than {request.step}, the one asked for",
                )
            session.check_report(report)
            session.check_due(report)
        if request.reports or self.store.shared:
            await self.group_commit.submit(row.key, row.generation, request.reports)
        if request.step is None:
            return None
        number = session.epoch_of(request.step)
        epoch = session.epoch(number)
        if epoch is None and (session.method.stateful or number >= session.open_epochs):
            epoch = await self._ensure_epoch(entry, number)
        entry.asked[request.rank] = max(request.step, entry.asked.get(request.rank, -1))
        return session.batch(request.rank, request.step, epoch)

    async def _load(self, id: str) -> Entry:
        entry = await asyncio.to_thread(self._from_store, id)
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
        session = _build_session(row.spec, row.size, tables, self.store.records(row), segments)
        return Entry(row, session, Progress(self.store, row.key))

    def _insert(self, entry: Entry) -> None:
        self._entries[entry.row.id] = self._by_key[entry.row.key] = entry
        if not entry.session.method.stateful:
            entry.tenure.until = math.inf  # what it has in memory is made with the session
        self._evict_oldest(entry)

    def _stored(self, write: Write) -> None:
        entry = self._by_key.get(write.key)
        if entry is not None and write.reports and entry.row.generation == write.generation:
            entry.progress.stored(write.reports)

    def _evict_oldest(self, entry: Entry) -> None:
        self.residency.make_room(entry, entry.nbytes, self.in_memory)
        while len(self._entries) > MAX_SESSIONS:
            self.evict(next(iter(self._entries)))

    async def _catch_up(self, entry: Entry) -> None:
        records = await asyncio.to_thread(self.store.records, entry.row, len(entry.session.records))
        for record in records:
            entry.session.opened(record)

    async def _ensure_epoch(self, entry: Entry, number: int) -> Epoch | None:
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
                    epoch = await asyncio.to_thread(self._compute, row, session, number)
                    session.put(number, epoch)
                self._metrics.computed_again.observe(time.perf_counter() - start)
        else:
            missing = await asyncio.to_thread(self._missing, entry, number)
            async with self._making(entry):
                record, epoch = await asyncio.to_thread(self._open, row, session, number, missing)
                session.opened(record, epoch)
            self._metrics.opened.observe(time.perf_counter() - start)
        return epoch

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

    def _missing(self, entry: Entry, number: int) -> np.ndarray[Any, Any]:
        """Reports that an epoch is opened without; raises ``Refusal`` where it has to wait for them."""
        if number == 0:
            return np.empty((0, 2), np.int64)
        missing = entry.progress.missing(entry.session.records[number - 1])
        if len(missing) and entry.row.spec.on_missing == "wait":
            raise _missing_reports(number, missing)
        return missing

    def _open(
        self, row: SessionRow, session: Session[Any], number: int, missing: np.ndarray[Any, Any]
    ) -> tuple[EpochRecord, Epoch]:
        """Open an epoch. At 10^8 candidates the order of these lines decides how much memory it takes."""
        if number == 0:
            state = session.method.start()
        else:
            if session.method.stateful and session.epoch(number - 1) is None:
                session.put(number - 1, self._compute(row, session, number - 1))
            self._make_way(session)
            state = self.fold(row, session, number - 1, self.state(row, session, number - 1), missing)
        stored = self.store.put_state(row.key, row.generation, number, state)
        record, epoch = session.opening(number, state, missing)
        if not self.store.open_epoch(row.key, row.generation, record, stored):
            record = self.store.records(row, number)[0]
            if not np.array_equal(record.missing, missing):
                other = self.store.state(row.key, number)
                if other is None or other[0] != number:
                    raise Refusal("busy", "another replica opened the epoch: ask again", retry_after=0.1)
                epoch = session.make_epoch(number, other[1])
        del state
        epoch.prepare()
        return record, epoch

    def _make_way(self, session: Session[Any]) -> None:
        """Have epochs that are large served from disk while the next one is made, and after."""
        try:
            session.move(Spool)
        except OSError:
            logger.warning("no room on disk for an epoch (%s): it stays in memory", tempfile.gettempdir())

    def _compute(self, row: SessionRow, session: Session[Any], number: int) -> Epoch:
        state = self.state(row, session, number)
        epoch: Epoch = session.make_epoch(number, state)
        del state
        epoch.prepare()
        return epoch

    def state(self, row: SessionRow, session: Session[Any], number: int) -> State:
        """The state that an open epoch starts from: stored, or computed from the reports since the last one stored."""
        stored = self.store.state(row.key, number) if number else None
        start, state = stored or (0, session.method.start())
        for epoch in range(start, number):
            state = self.fold(row, session, epoch, state, session.records[epoch + 1].missing)
        if start < number and (self.store.base(row.key) or 0) > start:
            raise Refusal("session-changed", "reports of old epochs were removed just now: ask again", retry_after=0.1)
        return state

    def fold(
        self,
        row: SessionRow,
        session: Session[Any],
        number: int,
        state: State,
        missing: np.ndarray[Any, Any],
        epoch: Epoch | None = None,
    ) -> State:
        """The state after an open epoch, from the one it starts with and its reports. Blocking."""
        record = session.records[number]
        epoch = epoch or session.epoch(number) or session.make_epoch(number, state)
        skipped = {(int(rank), int(step)) for rank, step in missing}

        def reports() -> Iterator[tuple[Indices, Losses]]:
            for report in self.store.reports(row.key, record.first_step, record.end, row.spec.batch_size):
                if (report.rank, report.step) not in skipped:
                    yield epoch.batch(report.rank, report.step - record.first_step)[0], report.losses

        return session.method.fold(state, epoch, reports())


def _build_session(
    spec: SessionSpec,
    size: int,
    tables: dict[str, bytes],
    records: list[EpochRecord],
    segments: Sequence[Segment] = (),
) -> Session[Any]:
    arrow_tables = {name: pa.ipc.open_stream(data).read_all() for name, data in tables.items()}
    session = Session(spec, make_method(spec, size, arrow_tables), records, segments)
    if not session.method.stateful:
        session.batch(0, 0)  # what its first batch compiles is compiled in this thread, and not in the loop
    return session


def _no_session(id: str) -> Refusal:
    return Refusal("not-found", f"there is no session {id!r}")


def check_generation(row: SessionRow, generation: int | None) -> None:
    """Refuse a request that names another generation than the session's."""
    if generation is not None and generation != row.generation:
        raise Refusal(
            "stale-generation",
            f"the request is of generation {generation}, but the session was rewound and is at {row.generation}: "
            "resume from its state",
            generation=row.generation,
        )


def check_base(row: SessionRow, epoch: int) -> None:
    """Refuse an epoch that lies before the checkpoint that the session was made from."""
    if epoch < row.base:
        raise Refusal(
            "before-base",
            f"epoch {epoch} lies before the checkpoint this session was made from: it starts at epoch {row.base}",
        )


def _missing_reports(number: int, missing: np.ndarray[Any, Any]) -> Refusal:
    first = [{"rank": int(rank), "step": int(step)} for rank, step in missing[:100]]
    return Refusal(
        "missing-reports",
        f"epoch {number} waits for {len(missing)} reports of epoch {number - 1}, the first of rank {first[0]['rank']}, "
        f"step {first[0]['step']}. What this request reported is stored. Ask again, or create sessions with "
        '"on_missing": "skip"',
        retry_after=1,
        missing=first,
        missing_count=len(missing),
    )
