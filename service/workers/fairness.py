"""Fairness between owners, and between the sessions of one: each has its turn, whatever the others have queued."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Tenant(NamedTuple):
    """Whom work is done for. Where nobody needs a token, each session counts as an owner."""

    owner: str | None = None
    session: str | None = None

    @property
    def payer(self) -> str:
        """What shares are counted by."""
        return self.owner or self.session or ""


TENANT: ContextVar[Tenant] = ContextVar("tenant", default=Tenant())  # noqa: B039 (a tuple)
"""Of the request that runs; tasks and threads that it starts inherit it."""


class FairQueue(Generic[T]):
    """Work that waits: owners take turns, and so do an owner's sessions; within a session the first comes first.

    Args:
        share: how much of one owner's may be in hand at once.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._waiting: OrderedDict[str, OrderedDict[Tenant, deque[T]]] = OrderedDict()
        self._in_hand: Counter[str] = Counter()

    def put(self, tenant: Tenant, work: T) -> None:
        """Queue work."""
        self._waiting.setdefault(tenant.payer, OrderedDict()).setdefault(tenant, deque()).append(work)

    def take(self) -> tuple[Tenant, T] | None:
        """The next work, to be given back with :meth:`done`; None where nothing waits that may be taken."""
        payer = next((payer for payer in self._waiting if self._in_hand[payer] < self._share), None)
        if payer is None:
            return None
        sessions = self._waiting[payer]
        tenant, queue = next(iter(sessions.items()))
        work = queue.popleft()
        sessions.move_to_end(tenant)
        self._waiting.move_to_end(payer)
        if not queue:
            del sessions[tenant]
        if not sessions:
            del self._waiting[payer]
        self._in_hand[payer] += 1
        return tenant, work

    def done(self, tenant: Tenant) -> None:
        """What was taken is finished."""
        self._in_hand[tenant.payer] -= 1
        if not self._in_hand[tenant.payer]:
            del self._in_hand[tenant.payer]

    def clear(self) -> list[T]:
        """Everything that waited, which waits no more."""
        waiting = [work for sessions in self._waiting.values() for queue in sessions.values() for work in queue]
        self._waiting.clear()
        return waiting


class FairSlots:
    """A number of slots that coroutines hold, in one event loop.

    Args:
        slots: how many there are.
        share: how many of them one owner may hold.
    """

    def __init__(self, slots: int, share: int) -> None:
        self._free = slots
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(share)

    async def take(self) -> Callable[[], None]:
        """Wait for a slot, in turn; what is returned gives it back, once however often it is called."""
        tenant = TENANT.get()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._give_back(tenant)

        self._queue.put(tenant, turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                give_back()
            raise
        return give_back

    def _next(self) -> None:
        while self._free and (taken := self._queue.take()) is not None:
            tenant, turn = taken
            self._free -= 1
            if turn.done():
                self._give_back(tenant)
            else:
                turn.set_result(None)

    def _give_back(self, tenant: Tenant) -> None:
        self._free += 1
        self._queue.done(tenant)
        self._next()
