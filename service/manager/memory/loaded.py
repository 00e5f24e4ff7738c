"""Sessions in memory: loaded from the store, looked at again where others may have changed them, let go.

All of it can be lost at any moment: the store has all it takes to compute it again.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Sequence, Set

from curation.service.errors import Refusal
from curation.service.manager.memory.entry import Entry, build_session
from curation.service.manager.memory.residency import Residency
from curation.service.manager.progress import Progress
from curation.service.manager.waiting import EpochWaits
from curation.service.session.caller import Caller
from curation.service.session.session import EpochRecord
from curation.service.store import SessionRow, Store

MAX_SESSIONS = 4096


class LoadedSessions:
    """The sessions of a store that are in memory.

    Args:
        store: where they are kept.
        resident_bytes: what their epochs may take in memory; those unused for longest go.
    """

    def __init__(self, store: Store, resident_bytes: int) -> None:
        self.store = store
        self.waits = EpochWaits()
        self.residency = Residency(resident_bytes)
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Entry]] = {}
        self._load_again: set[str] = set()
        self._by_key: dict[int, Entry] = {}
        self._seen: dict[int, dict[int, float]] = {}

    @property
    def in_memory(self) -> list[Entry]:
        """The sessions that are in memory now."""
        return list(self._entries.values())

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

    async def current(self, caller: Caller, id: str) -> Entry:
        """As :meth:`entry`, but as the store has it now, where other replicas may have changed it."""
        known = self._entries.get(id)
        if self.store.shared and known is not None:
            await self._look(known)
        return await self.entry(caller, id)

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

    def forget(self, entry: Entry) -> None:
        """Drop what is in memory of a session that was changed; who waits for its epoch looks again."""
        entry.outdated = True
        self._seen[entry.row.key] = entry.seen
        self.evict(entry.row.id)
        wait = self.waits.of(entry.row.key)
        if wait is not None:
            wait.doubt()

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


def _no_session(id: str) -> Refusal:
    return Refusal("not-found", f"there is no session {id!r}")
