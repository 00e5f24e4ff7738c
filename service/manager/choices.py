"""Choices from super-batches: what the ranks send of one is kept until all of it is there, then only the choice.

A choice that was answered is on disk. With one rank nothing waits, and what it sends is never stored.
"""

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from sqlalchemy.exc import SQLAlchemyError

from curation.service.errors import Refusal
from curation.service.manager.memory.entry import Entry, check_base, check_generation
from curation.service.manager.memory.parts import Parts
from curation.service.manager.sessions import SessionManager
from curation.service.manager.stepping import POLL_SECONDS
from curation.service.manager.waiting import wait_for
from curation.service.session.caller import Caller
from curation.service.session.choice import Choice, RankPart
from curation.service.session.protocols import Choosing, ChoosingEpoch, Indices, Weights
from curation.service.session.spec import SessionSpec
from curation.service.session.super_batches import due_ranks, weight_of_share
from curation.service.store import SessionRow
from curation.service.store import choices as choice_store
from curation.service.store.choices import StepKey


class ChoiceRequest(NamedTuple):
    """A rank's part of a step's super-batch; ``part`` None: it only asks. ``wait``: seconds to wait for other ranks."""

    rank: int
    step: int
    part: RankPart | None
    generation: int | None
    wait: float = 0.0


class ChosenBatch(NamedTuple):
    """What a rank trains on at a step, in pick order.

    ``indices`` int64[n] candidates, ``weights`` float32[n], ``positions`` int64[n] in the super-batch of all ranks,
    ``scores`` float32[n], the logits (nats) they were drawn at.
    """

    indices: Indices
    weights: Weights
    positions: Indices
    scores: npt.NDArray[np.float32]
    epoch: int
    step: int
    epoch_end: int
    end_of_session: bool

    @property
    def end_of_epoch(self) -> bool:
        """Whether the epoch ends with this step."""
        return self.step == self.epoch_end - 1


_RARELY = 1.0
"""Between two looks at a store that no other server changes, for a session that was rewound or deleted meanwhile."""


class _Begun:
    """A step whose choice waits for ranks, and the requests that wait with it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.signal = asyncio.Event()
        self.poll: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class _Step:
    """A step of a session, found and checked; ``local`` counts within its epoch. Of its ``ranks``, those that are
    ``due`` have rows of the super-batch."""

    key: StepKey
    spec: SessionSpec
    method: Choosing
    epoch: ChoosingEpoch
    number: int
    local: int
    epoch_end: int
    ranks: int
    due: range | list[int]

    @property
    def seed(self) -> tuple[int, int, int]:
        return self.spec.seed, self.number, self.epoch.bounds(self.local)[1]


class Choices:
    """Makes and keeps the choices of one server.

    Args:
        sessions: those that the choices belong to.
        parts: where what the ranks sent is kept.
        threads: run the selection itself.
        max_rows: larger super-batches are refused.
    """

    def __init__(self, sessions: SessionManager, parts: Parts, threads: Executor, *, max_rows: int) -> None:
        self._sessions, self._parts, self._threads, self._max_rows = sessions, parts, threads, max_rows
        self._tasks: dict[StepKey, asyncio.Task[Choice]] = {}
        self._begun: dict[StepKey, _Begun] = {}

    async def choose(self, caller: Caller, id: str, request: ChoiceRequest) -> tuple[ChosenBatch, int]:
        """A rank's share of what is chosen at a step, and the session's generation.

        Raises:
            Refusal: what was sent does not fit, or is not what the rank sent before; or other ranks' parts are
                missing (``missing-reports``; then this one is stored), or this one's (``not-sent``).
        """
        entry = await self._sessions.current(caller, id)
        step = _find_step(entry, request)
        entry.seen[request.rank] = time.time()
        if request.part is not None:
            await asyncio.to_thread(_check_part, step, request.rank, request.part, self._max_rows)
        deadline = time.monotonic() + min(request.wait, self._sessions.max_wait)
        part = request.part
        while True:
            try:
                choice = await self._choice(step, request.rank, part)
                break
            except Refusal as refusal:
                if refusal.kind != "missing-reports" or not request.wait or not await self._wait(step, deadline):
                    raise
                await self._sessions.waited(caller)
                now = _find_step(await self._sessions.current(caller, id), request)
                step, part = now, None if now.key == step.key else request.part  # else it is stored
        if request.part is not None and choice.digests[step.due.index(request.rank)] != request.part.digest:
            raise choice_store.part_differs(request.rank, request.step)
        entry.asked[request.rank] = max(request.step, entry.asked.get(request.rank, -1))
        return _share(step, choice, request.rank), step.key.generation

    def let_go(self) -> None:
        """Answer all requests that wait for other ranks, because the server stops."""
        for key in list(self._begun):
            self._let_go(key)

    async def _choice(self, step: _Step, rank: int, part: RankPart | None) -> Choice:
        key = step.key
        if key not in self._tasks:
            if part is None or step.ranks == 1:
                stored = await asyncio.to_thread(self._parts.read, key)
            else:
                stored = await asyncio.to_thread(self._parts.put, key, rank, part)
            if isinstance(stored, Choice):
                return stored
            only_part = part if step.ranks == 1 else None
            if only_part is None and len(stored.ranks) < len(step.due):
                raise _missing_parts(key.step, rank, set(step.due) - stored.ranks)
            if key not in self._tasks:
                task = self._tasks[key] = asyncio.create_task(self._compute_choice(step, only_part))
                task.add_done_callback(lambda done: (self._tasks.pop(key), done.cancelled() or done.exception()))
                self._let_go(key)
        return await asyncio.shield(self._tasks[key])

    async def _wait(self, step: _Step, deadline: float) -> bool:
        """Wait until the choice of a step may be under way; False where time is over."""
        seconds = min(deadline - time.monotonic(), self._sessions.max_wait)
        if seconds <= 0:
            return False
        begun = self._begun.get(step.key)
        if begun is None:
            begun = self._begun[step.key] = _Begun()
            begun.poll = asyncio.create_task(self._poll(step, begun))
        begun.waiting += 1
        try:
            return await wait_for(begun.signal, seconds)
        finally:
            begun.waiting -= 1

    async def _poll(self, step: _Step, begun: _Begun) -> None:
        """Let those go who wait once another replica has what they wait for, or the session has changed."""
        seconds = POLL_SECONDS if self._sessions.store.shared else _RARELY
        while True:
            await asyncio.sleep(seconds)
            if begun.signal.is_set():
                return
            if not begun.waiting or not await asyncio.to_thread(self._must_wait, step):
                break
        self._let_go(step.key)

    def _must_wait(self, step: _Step) -> bool:
        store, key = self._sessions.store, step.key
        try:
            store.check_generation(key.session, key.generation)
            stored = self._parts.read(key)
        except (Refusal, SQLAlchemyError):
            return False  # those who wait look themselves, and are told
        return not isinstance(stored, Choice) and len(stored.ranks) < len(step.due)

    def _let_go(self, key: StepKey) -> None:
        begun = self._begun.pop(key, None)
        if begun is not None:
            begun.signal.set()

    async def _compute_choice(self, step: _Step, only_part: RankPart | None) -> Choice:
        store, key = self._sessions.store, step.key

        def work() -> Choice:
            if only_part is not None:
                return step.method.choose([only_part], step.seed)
            return step.method.choose(self._parts.all(key, step.due), step.seed)

        try:
            choice = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except Refusal as refusal:
            if only_part is None and refusal.kind == "bad-report":
                self._parts.forget(key)
                await asyncio.to_thread(choice_store.delete_parts, store, key)
            raise
        except (ValueError, TypeError) as error:
            raise Refusal("bad-body", str(error)) from error
        choice = await asyncio.to_thread(choice_store.put_choice, store, key, choice)
        self._parts.forget(key)
        return choice


def no_choice(row: SessionRow) -> Refusal:
    """A session whose method does not choose."""
    return Refusal(
        "other-method",
        f"session {row.id!r} is one of {row.spec.method}, whose batches are trained on whole: there is no choice",
    )


def _find_step(entry: Entry, request: ChoiceRequest) -> _Step:
    session, row, method = entry.session, entry.row, entry.session.method.choosing
    if method is None:
        raise no_choice(row)
    check_generation(row, request.generation)
    number = session.epoch_of(request.step)
    session.check_rank(request.rank, request.step)
    check_base(row, number)
    epoch: ChoosingEpoch | None = session.epoch(number)
    if epoch is None:
        epoch = cast(ChoosingEpoch, session.make_epoch(number, {}))
        session.put(number, epoch)
    first, end = session.span_of(number)
    key, local = StepKey(row.key, row.generation, request.step), request.step - first
    ranks = session.ranks_at(request.step)
    return _Step(key, row.spec, method, epoch, number, local, end, ranks, due_ranks(epoch, local, ranks))


def _check_part(step: _Step, rank: int, part: RankPart, max_rows: int) -> None:
    if step.ranks * step.spec.batch_size > max_rows:
        raise Refusal("too-large", f"a super-batch has more than {max_rows} rows, this server's limit (max_pairs)")
    if rank not in step.due:
        raise Refusal("bad-report", f"rank {rank} has no rows of step {step.key.step}: ask without sending")
    step.method.check(part, step.epoch.part(rank, step.local))
    _ = part.digest  # it reads all that was sent: in this thread, and once


def _share(step: _Step, choice: Choice, rank: int) -> ChosenBatch:
    start, stop = step.epoch.share(rank, step.local)
    positions = choice.positions[start:stop].astype(np.int64)
    return ChosenBatch(
        step.epoch.super_batch(step.local)[positions],
        np.full(len(positions), weight_of_share(step.epoch, rank, step.local, step.ranks), np.float32),
        positions,
        choice.scores[start:stop],
        step.number,
        step.key.step,
        step.epoch_end,
        step.key.step == step.epoch_end - 1 and step.number == step.spec.epochs - 1,
    )


def _missing_parts(step: int, rank: int, ranks: set[int]) -> Refusal:
    missing = [{"rank": other, "step": step} for other in sorted(ranks)]
    facts: dict[str, Any] = {"missing": missing[:100], "missing_count": len(missing)}
    if rank in ranks:
        return Refusal(
            "not-sent", f"rank {rank} has sent nothing for step {step} yet: send its part of the super-batch", **facts
        )
    return Refusal(
        "missing-reports",
        f"the choice of step {step} waits for {len(missing)} ranks, the first of them rank {missing[0]['rank']}. What "
        "this request sent is stored: ask again, without sending it",
        retry_after=1,
        **facts,
        missing_ranks=[place["rank"] for place in facts["missing"]],
    )
