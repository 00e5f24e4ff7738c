"""Sessions of a running server: created, stepped, changed, deleted."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from curation.service.errors import Refusal
from curation.service.manager.identity import check_alike, digest_of, first_generation
from curation.service.manager.memory.entry import Entry, build_session, check_base
from curation.service.manager.progress import Progress
from curation.service.manager.stepping import TRIES, Stepping
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.session.spec import SessionSpec, SpecChange
from curation.service.store import SessionRow, Store
from curation.service.store.blobs import Bytes

T = TypeVar("T")


class SessionManager(Stepping):
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
        super().__init__(store, resident_bytes, metrics or Metrics(), max_wait, check_caller)
        self._rewinds: dict[tuple[int, str], asyncio.Task[Entry]] = {}
        self._changes: set[asyncio.Task[Any]] = set()

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
