"""Batches of several steps and ranks at once: for a host with many ranks, and for who asks ahead."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from curation.service.errors import Refusal
from curation.service.manager.sessions import SessionManager
from curation.service.session.caller import Caller
from curation.service.session.session import Batch, Report, StepRequest

MAX_BATCHES = 4096
_LOOP_ROWS = 1 << 16
"""Rows that the event loop may gather itself; more are gathered in a thread."""


class BatchesRequest(NamedTuple):
    """A run of steps for some ranks, and what these report. ``step`` None: they only report."""

    ranks: Sequence[int]
    step: int | None
    steps: int
    reports: Sequence[Report]
    generation: int | None
    wait: float = 0.0


class RankBatch(NamedTuple):
    """A rank's batch."""

    rank: int
    batch: Batch


async def take_batches(
    sessions: SessionManager, caller: Caller, id: str, asked: BatchesRequest, *, max_rows: int
) -> tuple[list[RankBatch], int, list[int]]:
    """Store the reports, then answer with the batches by step and rank, the generation, and the steps of which a
    rank's report is not the one that came first.

    A run ends with its epoch: steps after that are left out.

    Raises:
        Refusal: as :meth:`SessionManager.step`; or more was asked for than ``max_rows`` rows, or 4,096 batches.
    """
    entry = await sessions.entry(caller, id)
    highest = max((*asked.ranks, *(report.rank for report in asked.reports)))
    try:
        entry.session.check_rank(highest)
    except Refusal:  # another replica may have resized it
        entry = await sessions.current(caller, id)
        entry.session.check_rank(highest)
    rows = len(asked.ranks) * asked.steps * entry.row.spec.batch_size
    if asked.step is not None and (len(asked.ranks) * asked.steps > MAX_BATCHES or rows > max_rows):
        raise _too_much(asked, max_rows)
    request = StepRequest(asked.ranks[0], asked.step, asked.reports, asked.generation, asked.wait)
    first, generation, ignored = await sessions.step(caller, id, request)
    if asked.step is None or first is None:
        return [], generation, sorted(set(ignored))
    entry = await sessions.entry(caller, id)
    if entry.row.generation != generation:
        raise Refusal("session-changed", "the session was rewound while this request ran: ask again", retry_after=0.1)
    number, end = first.epoch, min(asked.step + asked.steps, first.epoch_end)
    epoch = entry.session.epoch(number) or await sessions.epoch(entry, number)
    for rank in asked.ranks:
        entry.asked[rank] = max(end - 1, entry.asked.get(rank, -1))
        entry.seen[rank] = time.time()

    def gather() -> list[RankBatch]:
        batches: list[RankBatch] = []
        left = max_rows
        for step in range(asked.step or 0, end):
            for rank in asked.ranks:
                batch = entry.session.batch(rank, step, epoch)
                left -= len(batch.indices)
                if left < 0 and batches:
                    raise _too_much(asked, max_rows)
                batches.append(RankBatch(rank, batch))
        return batches

    # A plan's batches are as long as they are, whatever the session's batch_size.
    small = rows <= _LOOP_ROWS and entry.session.method.plan is None
    return gather() if small else await asyncio.to_thread(gather), generation, sorted(set(ignored))


def _too_much(asked: BatchesRequest, max_rows: int) -> Refusal:
    return Refusal(
        "too-large",
        f"{len(asked.ranks)} ranks × {asked.steps} steps are more than this server answers at once, {MAX_BATCHES} "
        f"batches or {max_rows} rows: ask for fewer",
    )
