"""Openings of epochs: once for all who wait, in a thread, as soon as the reports that an epoch needs are there.

Work in O(N) goes on when those who asked for it give up.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from curation.service.manager.memory.entry import Entry
from curation.service.manager.memory.loaded import LoadedSessions
from curation.service.manager.memory.making import EpochMaker
from curation.service.manager.progress import missing_reports
from curation.service.manager.waiting import EpochWait
from curation.service.monitoring.metrics import Metrics
from curation.service.session.methods.registry import method_kind
from curation.service.session.protocols import Epoch
from curation.service.session.session import EpochRecord
from curation.service.store import Store

_POLLED = 500


class EpochOpenings(LoadedSessions):
    """The sessions in memory, with their epochs.

    Args:
        store, resident_bytes: see :class:`LoadedSessions`.
        metrics: takes in epochs.
    """

    def __init__(self, store: Store, resident_bytes: int, metrics: Metrics) -> None:
        super().__init__(store, resident_bytes)
        self.maker = EpochMaker(store)
        self._metrics = metrics

    async def epoch(self, entry: Entry, number: int) -> Epoch | None:
        """Open an epoch, or compute it again; None where the method makes it on the spot.

        It is returned because requests for other epochs may push it out of memory before the caller goes on.
        """
        task = entry.tasks.get(number)
        if task is None:
            task = entry.tasks[number] = asyncio.create_task(self._open_or_compute(entry, number))
            task.add_done_callback(lambda done: (entry.tasks.pop(number, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    def keep_epoch(self, entry: Entry, number: int, epoch: Epoch) -> None:
        """Have an epoch in memory that was made elsewhere, where the sessions in use leave room."""
        if entry.session.epoch(number) is None and self.residency.make_room(entry, epoch.nbytes, self.in_memory):
            entry.session.put(number, entry.session.laid_out(number, epoch))

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
        return wait.missing(wait.left)  # without those that came while the store was read

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
