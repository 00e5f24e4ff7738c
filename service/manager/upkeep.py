"""Upkeep: what the settings say may go, and when a session was used last, looked after once a minute."""

import asyncio
import time
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.manager.memory.entry import Entry
from curation.service.manager.sessions import SessionManager

SECONDS = 60.0
DAY = 86_400.0


class Upkeep:
    """Removes what is older than it has to be kept.

    Args:
        sessions: of one server.
        keep_days: sessions that nobody used for so long are removed; None: none.
        keep_epochs: of so many epochs the reports are kept; None: of all.
    """

    def __init__(self, sessions: SessionManager, *, keep_days: float | None, keep_epochs: int | None) -> None:
        self._sessions, self._keep_days, self._keep_epochs = sessions, keep_days, keep_epochs
        self._noted = time.time()
        self._kept_from: dict[int, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await self.once()
            except (DBAPIError, Refusal) as error:
                logger.warning("upkeep of the store did not get through, and tries again: %s", error)

    async def once(self) -> None:
        """Look at all sessions."""
        entries = self._sessions.in_memory
        await self._note_use(entries)
        if self._keep_epochs is not None:
            for entry in entries:
                try:
                    await self._forget_reports(entry, self._keep_epochs)
                except Refusal:  # another replica rewound or removed it since it was asked for here
                    self._sessions.forget(entry)
        if self._keep_days is not None:
            before = time.time() - self._keep_days * DAY
            for id in await asyncio.to_thread(self._sessions.store.remove_unused, before):
                self._sessions.evict(id)
                logger.info("session %s was not used for %g days and is removed", id, self._keep_days)

    async def _note_use(self, entries: list[Entry]) -> None:
        now = time.time()
        used = {entry.row.key: entry.active for entry in entries if entry.active and entry.active >= self._noted}
        if used:
            await asyncio.to_thread(self._sessions.store.note_use, used)
        self._noted = now

    async def _forget_reports(self, entry: Entry, keep: int) -> None:
        session, row = entry.session, entry.row
        newest = session.open_epochs - 1
        if not session.method.stateful:
            newest = session.epoch_of(await self._step_of_slowest(entry))
        first = newest - keep + 1
        if first <= max(0, self._kept_from.get(row.key, 0)):
            return
        # Whose reports went cannot be computed again, or be laid out anew. States are stored of the two latest epochs.
        base = max(row.base, newest - 1 if session.method.stateful else first)
        step = session.span_of(first)[0]
        await asyncio.to_thread(self._sessions.store.forget_reports, row.key, row.generation, step, base)
        entry.row = replace(row, base=base)
        self._kept_from[row.key] = first

    async def _step_of_slowest(self, entry: Entry) -> int:
        """The step at which that rank is, of those that are at work, which is furthest behind: ranks of a method
        without a state do not wait for each other."""
        reported = {rank: ranks.last for rank, ranks in (await entry.progress.by_rank()).items()}
        ranks = [rank for rank in {*reported, *entry.asked} if rank < entry.session.world_size]
        steps = [max(reported.get(rank, 0), entry.asked.get(rank, 0)) for rank in ranks]
        return min(min(steps, default=0), entry.session.known_steps - 1)
