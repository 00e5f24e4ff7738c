"""Progress of a session: what each rank reported, and which reports an epoch's end waits for.

Kept as reports are stored, so that no look at a session reads all of them: once after the session came into memory,
and again only where a rank reported out of order or other replicas store reports, too.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.service.session.session import EpochRecord, Report
from curation.service.store import Store

POINTS = 512
"""So many outstanding reports are looked up one by one; of more, all that came since are read."""
_PAUSE = 10


class RankReports(NamedTuple):
    """Reports of a rank: how many are stored, and the last step among them."""

    reports: int
    last: int


class Progress:
    """Reports of one session, by rank.

    Args:
        store: where they are.
        key: the session's, in the store.
    """

    def __init__(self, store: Store, key: int) -> None:
        self._store, self._key = store, key
        self._ranks: dict[int, RankReports] | None = None
        self._unsure = store.shared
        self._since: list[Report] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._count_again = 0.0
        self._outstanding: Outstanding | None = None

    def stored(self, reports: Sequence[Report]) -> None:
        """Take note of reports that are on disk now, new or not."""
        if self._outstanding is not None:
            self._outstanding.stored(reports)
        if self._since is not None:
            self._since.extend(reports)
        elif self._ranks is not None:
            self._note(self._ranks, reports)

    async def by_rank(self) -> Mapping[int, RankReports]:
        """What each rank that reported has reported.

        Where it has to be counted anew, that takes a tenth of the time at most: between counts it may be a little old.
        """
        due = self._unsure and time.monotonic() >= self._count_again
        if self._ranks is None or due:
            if self._counting is None:
                self._counting = asyncio.create_task(self._count())
                self._counting.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(self._counting)
        return self._ranks or {}

    def missing(self, record: EpochRecord) -> npt.NDArray[np.int64]:
        """int64[m, 2]: (rank, step), by step, of the reports of an epoch that are not stored. Blocking."""
        outstanding = self._outstanding
        if outstanding is None or outstanding.record.number != record.number:
            outstanding = Outstanding(record)
            self._outstanding = outstanding  # before reading: what is stored meanwhile is noted or read
            try:
                outstanding.read(self._store, self._key, record.due_from)
            except BaseException:
                self._outstanding = None
                raise
        elif self._store.shared:
            outstanding.catch_up(self._store, self._key)
        return outstanding.pairs()

    async def _count(self) -> None:
        begin, self._since = time.monotonic(), []
        try:
            counted = await asyncio.to_thread(self._store.progress, self._key)
            ranks = {rank: RankReports(*facts) for rank, facts in counted.items()}
            self._unsure = self._store.shared
            self._note(ranks, self._since)
            self._ranks = ranks
        finally:
            now = time.monotonic()
            self._count_again = now + max(1.0, _PAUSE * (now - begin))
            self._since = self._counting = None

    def _note(self, ranks: dict[int, RankReports], reports: Sequence[Report]) -> None:
        for report in reports:
            count, last = ranks.get(report.rank, (0, -1))
            if report.step > last:
                ranks[report.rank] = RankReports(count + 1, report.step)
            else:
                self._unsure = True  # one that was late, or one sent again


class Outstanding:
    """Reports of one epoch that are not stored yet.

    Args:
        record: the epoch.
    """

    def __init__(self, record: EpochRecord) -> None:
        self.record = record
        self._due = record.expected()

    def stored(self, reports: Sequence[Report]) -> None:
        """Take note of reports, of whichever epochs."""
        for report in reports:
            step = report.step - self.record.due_from
            if 0 <= step < len(self._due):
                self._due[step, report.rank] = False

    def read(self, store: Store, key: int, first: int) -> None:
        """Take note of what is stored of the steps from ``first`` on."""
        for ranks, steps in store.reported(key, first, self.record.end):
            self._due[steps - self.record.due_from, ranks] = False

    def catch_up(self, store: Store, key: int) -> None:
        """Take note of what other replicas stored."""
        pairs = self.pairs()
        if len(pairs) > POINTS:
            self.read(store, key, int(pairs[0, 1]))
        elif len(pairs):
            for rank, step in store.which_reported(key, pairs.tolist()):
                self._due[step - self.record.due_from, rank] = False

    def pairs(self) -> npt.NDArray[np.int64]:
        """int64[m, 2]: (rank, step), by step."""
        due = np.argwhere(self._due)
        return np.stack([due[:, 1], due[:, 0] + self.record.due_from], axis=1)


def page(
    ranks: Mapping[int, RankReports], asked: Mapping[int, int], first: int, limit: int
) -> tuple[list[int], int | None]:
    """The ranks from ``first`` on that reported or asked, ``limit`` at most, and the first that is left out."""
    found = sorted(rank for rank in {*ranks, *asked} if rank >= first)
    return found[:limit], found[limit] if len(found) > limit else None
