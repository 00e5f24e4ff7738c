"""Sessions of a running server: loaded from the store, opened epoch by epoch as reports come in, served from memory.

What it holds in memory can be lost at any moment: the store has all it takes to compute it again. Work in O(N) runs in
threads, once for all requests that wait for it, and goes on when they give up.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation.service.errors import Refusal
from curation.service.manager.group_commit import GroupCommit
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.session.methods.registry import make_method
from curation.service.session.protocols import Epoch, Indices, Losses, State
from curation.service.session.segments import Segment
from curation.service.session.session import Batch, EpochRecord, Session, StepRequest
from curation.service.session.spec import SessionSpec
from curation.service.store import SessionRow, Store

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
    asked: dict[int, int] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    tasks: "dict[int, asyncio.Task[Epoch | None]]" = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)
    used: float = float("-inf")

    def waiting(self, now: float) -> list[int]:
        """The ranks that wait for other ranks' reports."""
        return [rank for rank, at in list(self.waits.items()) if now - at < RECENT_SECONDS]

    def state(self, now: float) -> str:
        """``waiting`` (a rank for others), ``finished`` (each rank had its last step), ``running`` or ``idle``."""
        if self.waiting(now):
            return "waiting"
        asked = list(self.asked.values())
        if len(asked) == self.session.world_size and min(asked) + 1 == self.session.total_steps:
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
        self.group_commit = GroupCommit(store, self._metrics)
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Entry]] = {}
        self._resident_bytes = resident_bytes

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
            if entry.row.spec != spec or entry.row.size != size:
                raise taken
            return entry, False
        entry = Entry(row, session)
        self._insert(entry)
        return entry, True

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
        return entry

    def evict(self, id: str) -> None:
        """Drop what is in memory of a session."""
        self._entries.pop(id, None)

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
        await asyncio.to_thread(self.store.rewind, row.key, row.generation, step, epoch, caller)
        self.evict(id)
        return await self.entry(caller, id)

    async def delete(self, caller: Caller, id: str) -> None:
        """Forget a session for good."""
        entry = await self.entry(caller, id)
        await asyncio.to_thread(self.store.delete_session, entry.row.key, caller)
        self.evict(id)

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
        if row is None:
            raise _no_session(id)
        segments = self.store.segments(row.key)
        tables = self.store.tables(row.key)
        return Entry(row, _build_session(row.spec, row.size, tables, self.store.records(row), segments))

    def _insert(self, entry: Entry) -> None:
        self._entries[entry.row.id] = entry
        self._evict_oldest(entry)

    def _evict_oldest(self, entry: Entry) -> None:
        total = sum(other.session.nbytes for other in self._entries.values())
        while len(self._entries) > 1 and (total > self._resident_bytes or len(self._entries) > MAX_SESSIONS):
            id, oldest = next(iter(self._entries.items()))
            if oldest is entry:
                self._entries.move_to_end(id)
                continue
            total -= oldest.session.nbytes
            self._metrics.evictions += oldest.session.nbytes > 0
            del self._entries[id]

    async def _catch_up(self, entry: Entry) -> None:
        records = await asyncio.to_thread(self.store.records, entry.row)
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
                epoch = await asyncio.to_thread(self._compute, row, session, number)
                session.put(number, epoch)
                self._metrics.computed_again.observe(time.perf_counter() - start)
        else:
            record, epoch = await asyncio.to_thread(self._open, row, session, number)
            session.opened(record, epoch)
            self._metrics.opened.observe(time.perf_counter() - start)
        self._evict_oldest(entry)
        return epoch

    def _open(self, row: SessionRow, session: Session[Any], number: int) -> tuple[EpochRecord, Epoch]:
        missing = np.empty((0, 2), np.int64)
        if number == 0:
            state = session.method.start()
        else:
            before = session.records[number - 1]
            missing = session.missing(number - 1, *self.store.reported(row.key, before.due_from, before.end))
            if len(missing) and row.spec.on_missing == "wait":
                raise _missing_reports(number, missing)
            state = self.fold(row, session, number - 1, self.state(row, session, number - 1), missing)
        record, epoch = session.opening(number, state, missing)
        if not self.store.open_epoch(row.key, row.generation, record, state):
            record = self.store.records(row)[number]
            if not np.array_equal(record.missing, missing):
                stored = self.store.state(row.key, number)
                if stored is None or stored[0] != number:
                    raise Refusal("busy", "another replica opened the epoch: ask again", retry_after=0.1)
                epoch = session.make_epoch(number, stored[1])
        return record, epoch

    def _compute(self, row: SessionRow, session: Session[Any], number: int) -> Epoch:
        epoch: Epoch = session.make_epoch(number, self.state(row, session, number))
        return epoch

    def state(self, row: SessionRow, session: Session[Any], number: int) -> State:
        """The state that an open epoch starts from: stored, or computed from the reports since the last one stored."""
        stored = self.store.state(row.key, number) if number else None
        start, state = stored or (0, session.method.start())
        for epoch in range(start, number):
            state = self.fold(row, session, epoch, state, session.records[epoch + 1].missing)
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
            for report in self.store.reports(row.key, record.first_step, record.end):
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
    return Session(spec, make_method(spec, size, arrow_tables), records, segments)


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
