"""What JEST sessions choose: what the ranks send of a super-batch is kept until it is all there, then only the choice.

A choice that was answered is on disk. With one rank nothing waits, and what it sends is never stored.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.service.errors import Refusal
from curation.service.manager.sessions import Entry, Keeper
from curation.service.session.caller import Caller
from curation.service.session.choice import Made, Sent
from curation.service.session.methods.jest import JestMethod, SuperBatches
from curation.service.session.session import Indices, Weights
from curation.service.store import choices as choice_store
from curation.service.store.choices import Slot


class ChoiceAsk(NamedTuple):
    """What a rank sends of a step's super-batch; None: it only asks."""

    rank: int
    step: int
    sent: Sent | None
    generation: int | None


class Choice(NamedTuple):
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


Compute = Callable[[Callable[[], Made]], Awaitable[Made]]
"""Runs blocking work elsewhere, few at once."""


@dataclass(frozen=True)
class _Place:
    """A step of a session, found and checked; ``local`` counts within its epoch."""

    slot: Slot
    method: JestMethod
    epoch: SuperBatches
    number: int
    local: int
    epoch_end: int

    @property
    def seed(self) -> tuple[int, int, int]:
        return self.method.spec.seed, self.number, self.epoch.bounds(self.local)[1]


class Choices:
    """Makes and keeps the choices of one server.

    Args:
        keeper: of the sessions.
        compute: runs the selection itself.
        most_rows: larger super-batches are refused.
    """

    def __init__(self, keeper: Keeper, compute: Compute, *, most_rows: int) -> None:
        self._keeper, self._compute, self._most_rows = keeper, compute, most_rows
        self._tasks: dict[Slot, asyncio.Task[Made]] = {}

    async def take(self, caller: Caller, id: str, ask: ChoiceAsk) -> tuple[Choice, int]:
        """A rank's share of what is chosen at a step, and the session's generation.

        Raises:
            Refusal: what was sent does not fit, or is not what the rank sent before; or other ranks' parts are
                missing (``missing-reports``; then this one is stored), or this one's (``not-sent``).
        """
        entry = await self._keeper.fresh(caller, id)
        place = _find(entry, ask)
        if ask.sent is not None:
            await asyncio.to_thread(_check, place, ask.rank, ask.sent, self._most_rows)
        made = await self._made(place, ask.rank, ask.sent)
        if ask.sent is not None and made.digests[ask.rank] != ask.sent.digest:
            raise choice_store.differs(ask.rank, ask.step)
        entry.asked[ask.rank] = max(ask.step, entry.asked.get(ask.rank, -1))
        return _share(place, made, ask.rank), place.slot.generation

    async def _made(self, place: _Place, rank: int, sent: Sent | None) -> Made:
        slot, world = place.slot, place.method.spec.world_size
        if slot not in self._tasks:
            store = self._keeper.store
            if sent is None or world == 1:
                found = await asyncio.to_thread(choice_store.look, store, slot)
            else:
                found = await asyncio.to_thread(choice_store.put_part, store, slot, rank, sent)
            if isinstance(found, Made):
                return found
            alone = sent if world == 1 else None
            if alone is None and len(found.ranks) < world:
                raise _missing(slot.step, rank, set(range(world)) - found.ranks)
            if slot not in self._tasks:
                task = self._tasks[slot] = asyncio.create_task(self._decide(place, alone))
                task.add_done_callback(lambda done: (self._tasks.pop(slot), done.cancelled() or done.exception()))
        return await asyncio.shield(self._tasks[slot])

    async def _decide(self, place: _Place, alone: Sent | None) -> Made:
        store, slot = self._keeper.store, place.slot

        def work() -> Made:
            world = place.method.spec.world_size
            parts = [alone] if alone is not None else choice_store.parts(store, slot, world)
            return place.method.choose(parts, place.seed)

        try:
            made = await self._compute(work)
        except Refusal as refusal:
            if alone is None and refusal.kind == "bad-report":
                await asyncio.to_thread(choice_store.discard, store, slot)
            raise
        return await asyncio.to_thread(choice_store.keep, store, slot, made)


def _find(entry: Entry, ask: ChoiceAsk) -> _Place:
    session, row, method = entry.session, entry.row, entry.session.method
    if not isinstance(method, JestMethod):
        raise Refusal("other-method", f"session {row.id!r} is one of {row.spec.method}: only those of jest choose")
    session.check_rank(ask.rank)
    if ask.generation is not None and ask.generation != row.generation:
        raise Refusal(
            "stale-generation",
            f"the request is of generation {ask.generation}, but the session was rewound and is at {row.generation}: "
            "resume from its state",
            generation=row.generation,
        )
    number = session.epoch_of(ask.step)
    if number < row.base:
        raise Refusal(
            "before-base",
            f"epoch {number} lies before the checkpoint this session was made from: it starts at epoch {row.base}",
        )
    epoch = session.epoch(number)
    if epoch is None:
        epoch = method.epoch(number, {})
        session.put(number, epoch)
    assert isinstance(epoch, SuperBatches)
    first, end = session.span_of(number)
    return _Place(Slot(row.key, row.generation, ask.step), method, epoch, number, ask.step - first, end)


def _check(place: _Place, rank: int, sent: Sent, most: int) -> None:
    start, stop = place.epoch.layout.span(rank, place.local)
    place.method.check(sent, stop - start, most)
    _ = sent.digest  # it reads all that was sent: here, in a thread, and once


def _share(place: _Place, made: Made, rank: int) -> Choice:
    start, stop = place.epoch.share(rank, place.local)
    positions = made.positions[start:stop].astype(np.int64)
    return Choice(
        place.epoch.super_batch(place.local)[positions],
        np.ones(len(positions), np.float32),
        positions,
        made.scores[start:stop],
        place.number,
        place.slot.step,
        place.epoch_end,
        place.slot.step == place.epoch_end - 1 and place.number == place.method.spec.epochs - 1,
    )


def _missing(step: int, rank: int, ranks: set[int]) -> Refusal:
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
    )
