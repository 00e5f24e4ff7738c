"""Progress of a session as the dashboard shows it: its status, and its ranks, however many there are."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from sqlalchemy import select

from curation.service.manager.sessions import Entry
from curation.service.session.session import LOSS
from curation.service.session.status import Progress, Status, share_done, status_of, waited_for
from curation.service.store import Store
from curation.service.store.tables import reports
from curation.service.store.traces import last_reported

CELLS = 1024
LINES = 50
NAMED = 10


class Standing(BaseModel):
    """How a session stands; the same in the list and on its page."""

    status: Status
    done: float = Field(description="share of all its steps, 0 to 1")
    step: int | None = Field(description="the furthest step asked for or reported")
    epoch: int | None = Field(description="that step's epoch")
    active: float | None = Field(description="when it was asked or told something last; null: not since the start")
    waits_for: list[int] = Field(description="ranks that the next epoch waits for, the furthest behind first")
    waits_for_count: int
    waits_since: float | None = Field(description="when the first of them was here last; null: not since the start")


class RankLine(BaseModel):
    """How far one rank is."""

    rank: int
    behind: int = Field(description="steps behind the furthest rank")
    last_asked: int | None
    last_reported: int | None
    reports: int
    seen: float | None


class Ranks(BaseModel):
    """All ranks: a strip of cells, each for ``per_cell`` ranks, and some of them one by one."""

    total: int
    started: int = Field(description="ranks that asked or reported")
    behind: int = Field(description="ranks that are behind the furthest")
    per_cell: int
    cells: list[int] = Field(description="steps behind, of the last in the cell; -1: one that never came")
    lines: list[RankLine] = Field(description="the furthest behind first, or from the rank asked for")


def read_progress(
    store: Store, entry: Entry, found: Mapping[int, tuple[int, int]]
) -> tuple[Progress, Mapping[int, int]]:
    """What a session was asked and told, and how many reports there are of each rank, where ``found`` has for each the
    number of reports and the last step among them. Blocking."""
    progress = _progress(store, entry, {rank: last for rank, (_, last) in found.items()})
    return progress, {rank: count for rank, (count, _) in found.items()}


def glance(store: Store, entry: Entry) -> Progress:
    """The same where only the ranks that reported the last step matter: it reads no more than those. Blocking."""
    last = last_reported(store, entry.row.key)
    query = select(reports.c.rank).where(reports.c.session == entry.row.key, reports.c.step == last)
    with store.engine.connect() as connection:
        ranks = [] if last is None else connection.execute(query).scalars().all()
    return _progress(store, entry, {} if last is None else dict.fromkeys(ranks, last))


def standing(entry: Entry, progress: Progress, started: float, stalled_seconds: float) -> Standing:
    """How a session stands, on a server that runs since ``started``."""
    session, step = entry.session, progress.step
    waits = waited_for(session, progress.reported)
    return Standing(
        status=status_of(session, progress, time.time(), started, stalled_seconds),
        done=share_done(session, progress),
        step=step,
        epoch=None if step is None else session.epoch_of(step),
        active=progress.active,
        waits_for=list(waits[:NAMED]),
        waits_for_count=len(waits),
        waits_since=entry.seen.get(waits[0]) if waits else None,
    )


def ranks_of(entry: Entry, progress: Progress, counts: Mapping[int, int], first: int | None) -> Ranks:
    """All ranks, and :data:`LINES` of them from ``first`` (None: the furthest behind)."""
    total = entry.session.ranks_at(progress.step or 0)
    last = np.full(total, -1, np.int64)
    for rank, step in (progress.reported or progress.asked).items():
        if rank < total:
            last[rank] = step
    behind = last.max() - last
    order = np.argsort(-behind, kind="stable") if first is None else np.arange(min(first, total - 1), total)
    per_cell = -(-total // CELLS)
    cells = np.where(last < 0, np.iinfo(np.int64).max, behind)
    worst = np.maximum.reduceat(cells, np.arange(0, total, per_cell))
    return Ranks(
        total=total,
        started=len({*progress.asked, *progress.reported}),
        behind=int(np.count_nonzero(behind)),
        per_cell=per_cell,
        cells=np.where(worst == np.iinfo(np.int64).max, -1, worst).tolist(),
        lines=[
            RankLine(
                rank=rank,
                behind=int(behind[rank]),
                last_asked=progress.asked.get(rank),
                last_reported=progress.reported.get(rank),
                reports=counts.get(rank, 0),
                seen=entry.seen.get(rank),
            )
            for rank in order[:LINES].tolist()
        ],
    )


def _progress(store: Store, entry: Entry, reported: Mapping[int, int]) -> Progress:
    diverged = _has_diverged(store, entry.row.key, max(reported.values(), default=None))
    seen = dict(entry.seen).values()
    # Another replica may have opened an epoch since this one looked.
    known = entry.session.known_steps - 1
    last = {rank: min(step, known) for rank, step in reported.items()}
    return Progress(dict(entry.asked), last, max(seen, default=None), diverged)


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


def is_broken(losses: "np.ndarray[Any, np.dtype[Any]]") -> bool:
    """Whether half or more of some losses are not finite."""
    return len(losses) > 0 and 2 * int(np.count_nonzero(~np.isfinite(losses))) >= len(losses)
