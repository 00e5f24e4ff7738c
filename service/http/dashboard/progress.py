"""Progress of a session as the dashboard shows it: its status, and its ranks, however many there are."""

import time
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, Field

from curation.service.manager.memory.entry import Entry
from curation.service.session.status import Progress, Status, share_done, status_of, waited_for

CELLS = 1024
LINES = 50
NAMED = 10


class Standing(BaseModel):
    """How a session stands; the same in the list and on its page."""

    status: Status
    done: float = Field(description="share of all its steps, 0 to 1")
    step: int | None = Field(description="the furthest step asked for or reported")
    epoch: int | None = Field(description="that step's epoch")
    active: float | None = Field(description="when it was used last; to about a minute where that was before the start")
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


def standing(entry: Entry, progress: Progress, started: float, stalled_seconds: float) -> Standing:
    """How a session stands, on a server that runs since ``started``."""
    session, step = entry.session, progress.step
    waits = waited_for(session, progress)
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
    session = entry.session
    total = session.world_size
    last = np.full(total, -1, np.int64)
    for rank, step in (progress.reported or progress.asked).items():
        if rank < total:
            last[rank] = step
    # Ranks that joined when the session was resized owe nothing from before.
    begun = np.maximum(last, session.segments[-1].first_step - 1) if session.segments else last
    behind = begun.max() - begun
    order = np.argsort(-behind, kind="stable") if first is None else np.arange(min(first, total - 1), total)
    per_cell = -(-total // CELLS)
    cells = np.where(last < 0, np.iinfo(np.int64).max, behind)
    worst = np.maximum.reduceat(cells, np.arange(0, total, per_cell))
    return Ranks(
        total=total,
        started=sum(rank < total for rank in {*progress.asked, *progress.reported}),
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
