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

    def stored(self, reports: Sequence[Report]) -> None:
        """Take note of reports that are on disk now, new or not."""
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


def missing_reports(store: Store, key: int, record: EpochRecord) -> npt.NDArray[np.int64]:
    """int64[m, 2]: (rank, step), by step, of the reports of an epoch that are not stored. Blocking."""
    due = record.expected()
    for ranks, steps in store.reported(key, record.due_from, record.end):
        due[steps - record.due_from, ranks] = False
    places = np.argwhere(due)
    return np.stack([places[:, 1], places[:, 0] + record.due_from], axis=1)


def page(
    ranks: Mapping[int, RankReports], asked: Mapping[int, int], first: int, limit: int
) -> tuple[list[int], int | None]:
    """The ranks from ``first`` on that reported or asked, ``limit`` at most, and the first that is left out."""
    found = sorted(rank for rank in {*ranks, *asked} if rank >= first)
    return found[:limit], found[limit] if len(found) > limit else None
