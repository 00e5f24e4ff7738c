"""What the status of a session is judged by, read from memory and from the store. Blocking.

One rule (:mod:`curation.service.session.status`) serves the dashboard and the metrics: both get its facts here.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from curation.service.manager.memory.entry import RECENT_SECONDS, Entry
from curation.service.manager.sessions import SessionManager
from curation.service.session.session import LOSS
from curation.service.session.status import NOTHING, Progress, Status, status_of
from curation.service.store import Store
from curation.service.store.tables import reports
from curation.service.store.traces import last_reported


class Statuses:
    """The statuses of the sessions in memory, for the metrics: what the store says of quiet ones is read once.

    Args:
        manager: whose sessions they are.
        stalled_seconds: how long nobody asks until a session is stalled.
    """

    SECONDS = 2.0
    """What one look may take; sessions that are left over are told by what is in memory, until the next."""

    def __init__(self, manager: SessionManager, stalled_seconds: float) -> None:
        self._manager, self._stalled_seconds = manager, stalled_seconds
        self._started = time.time()
        self._read: WeakKeyDictionary[Entry, tuple[float, Progress]] = WeakKeyDictionary()

    def of(self, entries: Iterable[Entry]) -> list[Status]:
        """A status for each; where the store does not answer, as this server saw the session last."""
        until, statuses = time.monotonic() + self.SECONDS, []
        for entry in entries:
            at, told = self._read.get(entry, (float("-inf"), NOTHING))
            if time.monotonic() < until and self._is_old(entry, at):
                try:
                    at, told = time.time(), glance(self._manager, entry)
                    self._read[entry] = at, told
                except SQLAlchemyError:
                    until = 0
            told = told._replace(asked=dict(entry.asked), active=entry.active, late=told_to_wait(self._manager, entry))
            statuses.append(status_of(entry.session, told, time.time(), self._started, self._stalled_seconds))
        return statuses

    def _is_old(self, entry: Entry, at: float) -> bool:
        if at < max(entry.active or 0, self._started) + RECENT_SECONDS:
            return True
        return self._manager.store.shared and time.time() - at > RECENT_SECONDS


def read_progress(
    manager: SessionManager, entry: Entry, found: Mapping[int, tuple[int, int]]
) -> tuple[Progress, Mapping[int, int]]:
    """What a session was asked and told, and how many reports there are of each rank, where ``found`` has for each the
    number of reports and the last step among them."""
    progress = _progress(manager, entry, {rank: last for rank, (_, last) in found.items()})
    return progress, {rank: count for rank, (count, _) in found.items()}


def glance(manager: SessionManager, entry: Entry) -> Progress:
    """The same where only the ranks that reported the last step matter: it reads no more than those."""
    key = entry.row.key
    last = last_reported(manager.store, key)
    query = select(reports.c.rank).where(reports.c.session == key, reports.c.step == last)
    with manager.store.engine.connect() as connection:
        ranks = [] if last is None else connection.execute(query).scalars().all()
    return _progress(manager, entry, {} if last is None else dict.fromkeys(ranks, last))


def told_to_wait(manager: SessionManager, entry: Entry) -> list[int]:
    """The ranks that requests to this server were told to wait for; none where none had to."""
    wait, session = manager.waits.of(entry.row.key), entry.session
    if wait is None or not wait.known or wait.generation != entry.row.generation or wait.number != session.open_epochs:
        return []
    ranks: list[int] = wait.late_ranks().tolist()
    return ranks


def is_broken(losses: "np.ndarray[Any, np.dtype[Any]]") -> bool:
    """Whether half or more of some losses are not finite."""
    return len(losses) > 0 and 2 * int(np.count_nonzero(~np.isfinite(losses))) >= len(losses)


def _progress(manager: SessionManager, entry: Entry, reported: Mapping[int, int]) -> Progress:
    diverged = _has_diverged(manager.store, entry.row.key, max(reported.values(), default=None))
    # Another replica may have opened an epoch since this one looked.
    known = entry.session.known_steps - 1
    last = {rank: min(step, known) for rank, step in reported.items()}
    return Progress(dict(entry.asked), last, entry.active, diverged, told_to_wait(manager, entry))


def _has_diverged(store: Store, key: int, last: int | None) -> bool:
    """Whether half or more of the losses of each of the last two steps reported are not finite; of one rank each."""
    if last is None:
        return False
    query = select(reports.c.step, reports.c.losses).where(reports.c.session == key).limit(1)
    found: list[Any] = []
    with store.engine.connect() as connection:
        newest = connection.execute(query.where(reports.c.step == last)).one_or_none()
        before = query.where(reports.c.step < last).order_by(reports.c.step.desc())
        found = [newest, connection.execute(before).one_or_none()]
    return all(is_broken(np.frombuffer(row.losses, LOSS)) for row in found if row is not None)
