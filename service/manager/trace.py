"""Trace of a session, its flight recorder: the rows of a step, the visits of a row, the steps whose loss stands out.

Nothing is recorded for it: every batch is a function of the session's parameters and the reports of earlier epochs, so
it is computed again, and the losses are those reported. It so reaches over all ranks, restarts, and what remains of
rewinds. A step in an epoch that is in memory costs its batches; in an earlier epoch of a stateful method, folding the
reports since the last state stored. One such epoch and state are kept beside those of the session, which stay.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from curation.service.errors import Refusal
from curation.service.manager.memory.entry import Entry, check_base
from curation.service.manager.sessions import SessionManager
from curation.service.manager.spikes import MeanLosses, outliers
from curation.service.manager.trace_results import RowVisit, RowVisits, Spike, Spikes, StepRows
from curation.service.session.choice import Choice
from curation.service.session.protocols import ChoosingEpoch, Epoch, Indices, Losses, State
from curation.service.session.super_batches import weight_of_share
from curation.service.store.choices import StepKey, read_choice
from curation.service.store.traces import last_reported, losses_at

MAX_ROWS = 1 << 22
THREADS, WAITING = 2, 16
SECONDS = 10.0
SPIKE_ROWS = 5
SPIKE_BYTES = 256 << 20
T = TypeVar("T")


class Recorder:
    """Looks back into the sessions of one server, in threads of its own: nobody's training waits for it."""

    def __init__(self, sessions: SessionManager) -> None:
        self._sessions, self._store = sessions, sessions.store
        self._threads = ThreadPoolExecutor(THREADS, "curation-trace")
        self._waiting = 0
        self._epoch: tuple[tuple[int, int, int], Epoch] | None = None
        self._state: tuple[tuple[int, int, int], State] | None = None

    def stop(self) -> None:
        """End the threads once they have answered."""
        self._threads.shutdown(cancel_futures=True)

    async def step_rows(self, entry: Entry, step: int, rank: int | None = None) -> StepRows:
        """The rows of a step on all ranks, or on one.

        Raises:
            Refusal: there is no such rank or step, its epoch is not open or before the base, or all ranks together
                have more than :data:`MAX_ROWS` rows.
        """
        if rank is not None:
            entry.session.check_rank(rank)
        return await self._run(lambda: self._step_rows(entry, step, rank))

    async def row_visits(self, entry: Entry, row: int, first: int | None = None, limit: int = 1000) -> RowVisits:
        """Every visit of a row in up to ``limit`` epochs from ``first`` (None: the earliest) to the one reached.

        A look-up for each epoch of ``random`` and ``jest``; a pass over the plan for each of ``plan``; a pass over the
        order and the reports of each epoch for others. What takes longer than :data:`SECONDS` comes in pieces.

        Raises:
            Refusal: there is no such row, or ``first`` is before the base.
        """
        if not 0 <= row < entry.row.size:
            raise Refusal("bad-row", f"row {row} is unknown: the session has candidates 0 to {entry.row.size - 1}")
        if first is not None:
            check_base(entry.row, first)
        start = entry.row.base if first is None else first
        return await self._run(lambda: self._row_visits(entry, row, start, limit))

    async def spikes(
        self, entry: Entry, top: int = 10, threshold: float = 6.0, first: int | None = None, limit: int = 10_000
    ) -> Spikes:
        """The ``top`` steps whose mean loss stands out by ``threshold`` deviations, the worst first.

        Reads all losses of ``limit`` steps from ``first`` (None: the last ones), up to :data:`SPIKE_BYTES`.
        """
        return await self._run(lambda: self._spikes(entry, top, threshold, first, limit))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING:
            raise Refusal("busy", f"{WAITING} requests look back already: try again", retry_after=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _step_rows(self, entry: Entry, step: int, rank: int | None) -> StepRows:
        session, row = entry.session, entry.row
        number = session.epoch_of(step)
        if step >= session.known_steps:
            raise Refusal("epoch-not-open", f"step {step} was never handed out: its epoch is not open yet")
        check_base(row, number)
        epoch, first = self._epoch_of(entry, number), session.span_of(number)[0]
        ranks = range(session.ranks_at(step)) if rank is None else range(rank, rank + 1)
        total = sum(epoch.length(each, step - first) for each in ranks)
        if total > MAX_ROWS:
            raise Refusal("bad-rank", f"step {step} has {total} rows on {len(ranks)} ranks: name one of them (rank=)")
        choice = self._choice(entry, step)
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        if choice is not None:
            chosen = _chosen_rows(epoch, choice, step - first)
            for each in ranks:
                share = slice(*_choosing(epoch).share(each, step - first))
                weight = weight_of_share(_choosing(epoch), each, step - first, session.ranks_at(step))
                scores_of = choice.scores[share]
                parts.append((chosen[share], np.full_like(scores_of, weight), scores_of))
        else:
            batches = (session.batch(each, step, epoch) for each in ranks)
            parts = [(batch.indices, batch.weights) for batch in batches]
        lengths = [len(part[0]) for part in parts]
        rows, weights, *scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        losses, reported = np.full(len(rows), np.nan, np.float32), np.zeros(len(rows), bool)
        starts = np.cumsum([0, *lengths])
        for report in self._store.reports(row.key, step, step + 1):
            at = report.rank - ranks.start
            if report.rank in ranks and len(report.losses) == lengths[at]:
                losses[starts[at] : starts[at + 1]] = report.losses
                reported[starts[at] : starts[at + 1]] = True
        return StepRows(
            number,
            step,
            None if session.method.choosing is None else choice is not None,
            np.repeat(np.arange(ranks.start, ranks.stop, dtype=np.int32), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
            rows,
            weights,
            losses,
            reported,
            scores[0] if scores else None,
        )

    def _row_visits(self, entry: Entry, row: int, first: int, limit: int) -> RowVisits:
        session, deadline = entry.session, time.monotonic() + SECONDS
        end = min(self._reached_epoch(entry, first) + 1, session.open_epochs)
        visits: list[RowVisit] = []
        following = first
        for number, epoch in self._orders(entry, first, end):
            start = session.span_of(number)[0]
            for step, rank, position in epoch.visits(row):
                visits.append(self._visit(entry, epoch, number, start + step, start, rank, position))
            following = number + 1
            if following - first >= limit or time.monotonic() > deadline:
                break
        pairs = [(visit.step, visit.rank) for visit in visits if visit.chosen is not False]
        losses = losses_at(self._store, entry.row.key, pairs)
        known = [self._with_loss(visit, losses.get((visit.step, visit.rank))) for visit in visits]
        return RowVisits(known, first, following if following < end else None)

    def _visit(
        self, entry: Entry, epoch: Epoch, number: int, step: int, first: int, rank: int, position: int
    ) -> RowVisit:
        indices, weights = epoch.batch(rank, step - first)
        if entry.session.method.choosing is None:
            return RowVisit(number, step, rank, position, float(weights[position]), None, None, None)
        choice = self._choice(entry, step)
        if choice is not None:
            for pick in np.flatnonzero(_chosen_rows(epoch, choice, step - first) == indices[position]):
                ranks, choosing = entry.session.ranks_at(step), _choosing(epoch)
                for learner in range(ranks):
                    start, stop = choosing.share(learner, step - first)
                    if start <= pick < stop and weight_of_share(choosing, learner, step - first, ranks):
                        score = float(choice.scores[pick])
                        return RowVisit(number, step, learner, int(pick) - start, 1.0, None, True, score)
        return RowVisit(number, step, rank, position, 0.0, None, False, None)

    def _with_loss(self, visit: RowVisit, losses: Losses | None) -> RowVisit:
        if losses is None or visit.chosen is False or visit.position >= len(losses):
            return visit
        return visit._replace(loss=float(losses[visit.position]))

    def _spikes(self, entry: Entry, top: int, threshold: float, first: int | None, limit: int) -> Spikes:
        session, row, deadline = entry.session, entry.row, time.monotonic() + SECONDS
        last = self._last_reported(entry)
        base = session.span_of(row.base)[0] if row.base < session.open_epochs else 0
        if last is None:
            return Spikes([], base, base, None)
        start = max(base, last + 1 - limit) if first is None else max(base, first)
        means, read, following = MeanLosses(), 0, None
        for report in self._store.reports(row.key, start, min(start + limit, last + 1)):
            if read > SPIKE_BYTES and report.step != means.last:
                following = report.step
                break
            means.add(report.step, report.losses)
            read += report.losses.nbytes
        end = min(start + limit, last + 1) if following is None else following
        if following is None and end <= last:
            following = end
        found = []
        for outlier in sorted(outliers(means, threshold)[:top], key=lambda outlier: outlier.step):
            rows = None
            if time.monotonic() < deadline:
                rows = self._step_rows(entry, outlier.step, None)
                rows = rows.take(rows.by_loss()[:SPIKE_ROWS])
            found.append(Spike(outlier, session.epoch_of(outlier.step), rows))
        found.sort(key=lambda spike: spike.outlier.order)
        return Spikes(found, start, end, following)

    def _reached_epoch(self, entry: Entry, first: int) -> int:
        """The furthest epoch of which a step was asked for or reported; ``first`` before there is one."""
        last = self._last_reported(entry)
        step = max([*entry.asked.values(), *([] if last is None else [last])], default=None)
        return first if step is None else max(first, entry.session.epoch_of(step))

    def _last_reported(self, entry: Entry) -> int | None:
        """The furthest step reported, of those known here: another replica may have opened an epoch meanwhile."""
        last = last_reported(self._store, entry.row.key)
        return None if last is None else min(last, entry.session.known_steps - 1)

    def _choice(self, entry: Entry, step: int) -> Choice | None:
        if entry.session.method.choosing is None:
            return None
        choice = read_choice(self._store, StepKey(entry.row.key, entry.row.generation, step))
        return choice if isinstance(choice, Choice) else None

    def _orders(self, entry: Entry, first: int, end: int) -> Iterator[tuple[int, Epoch]]:
        """The epochs ``first .. end - 1``, one after the other."""
        for number in range(first, end):
            yield number, self._epoch_of(entry, number)

    def _epoch_of(self, entry: Entry, number: int) -> Epoch:
        session = entry.session
        epoch: Epoch | None = session.epoch(number)
        if epoch is not None:
            return epoch
        if not session.method.stateful:
            return session.make_epoch(number, {})  # type: ignore[no-any-return]
        key = (entry.row.key, entry.row.generation, number)
        kept = self._epoch
        if kept is None or kept[0] != key:
            kept = self._epoch = key, session.make_epoch(number, self._state_of(entry, number))
        return kept[1]

    def _state_of(self, entry: Entry, number: int) -> State:
        """The state that an open epoch starts with, computed on from the one kept where that is the shorter way."""
        session, row, kept = entry.session, entry.row, self._state
        stored = number >= session.open_epochs - 2
        if stored or kept is None or kept[0][:2] != (row.key, row.generation) or kept[0][2] > number:
            state = self._sessions.maker.state(row, session, number)
        else:
            state = kept[1]
            for before in range(kept[0][2], number):
                missing = session.records[before + 1].missing
                held = self._epoch
                epoch = held[1] if held is not None and held[0] == (row.key, row.generation, before) else None
                state = self._sessions.maker.fold(row, session, before, state, missing, epoch)
        for values in state.values():
            values.flags.writeable = False  # the next fold makes a copy
        self._state = (row.key, row.generation, number), state
        return state


def _choosing(epoch: Epoch) -> ChoosingEpoch:
    """The epoch of a method that chooses, as what it is."""
    return epoch  # type: ignore[return-value]


def _chosen_rows(epoch: Epoch, choice: Choice, step: int) -> Indices:
    """int64[b]: the rows chosen at a step of an epoch, in pick order."""
    return _choosing(epoch).super_batch(step)[choice.positions]
