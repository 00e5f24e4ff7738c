"""Residency of epochs: which sessions' epochs are in memory, so that all of them keep to ``resident_bytes``.

Making an epoch is O(N), so one that was made stays for a while even if others ask for its room: they are told to wait.
With more sessions at work than fit, each has its turns, and the server spends a twentieth of its time on making
epochs again instead of all of it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from curation.service.errors import Refusal
from curation.service.logs import logger

IDLE = 10.0
"""Seconds without a request after which an epoch makes room for others."""
SHARE = 20
LONGEST = 60.0


@dataclass
class Tenure:
    """How long a session's epochs have been in memory, and may stay; in the monotonic clock's seconds."""

    used: float = 0
    until: float = 0

    def over(self, now: float) -> bool:
        return now > self.until or now > self.used + IDLE


class Resident(Protocol):
    """A session in memory."""

    tenure: Tenure

    @property
    def id(self) -> str: ...

    @property
    def nbytes(self) -> int:
        """What its epochs take."""

    @property
    def working(self) -> bool:
        """Whether an epoch of it is being made, so that it cannot go."""

    def release(self) -> None:
        """Let go of its epochs."""


class Residency:
    """Admission of epochs to memory.

    Args:
        max_bytes: what all of them may take, with what making one takes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.evictions = 0
        self.refusals = 0
        self._reserved = 0
        self._released = asyncio.Event()

    @asynccontextmanager
    async def room(
        self, resident: Resident, needed: int, residents: Callable[[], Sequence[Resident]]
    ) -> AsyncIterator[None]:
        """Room to make an epoch of a session; the session's own ones are counted in ``needed``.

        ``residents`` tells all sessions in memory, those unused for longest first. Waits where others that are being
        made may leave room.

        Raises:
            Refusal: the sessions in use leave none.
        """
        while not self.make_room(resident, needed, residents()):
            if not self._reserved:
                raise self._refusal(residents())
            self._released = self._released if not self._released.is_set() else asyncio.Event()
            await self._released.wait()
        self._reserved += needed
        begin = time.monotonic()
        try:
            yield
        finally:
            self._reserved -= needed
            self._released.set()
            now = time.monotonic()
            resident.tenure.until = now + min(max(IDLE, SHARE * (now - begin)), LONGEST)

    def make_room(self, resident: Resident, needed: int, residents: Sequence[Resident]) -> bool:
        """Have others let go of their epochs where that helps; whether ``needed`` bytes fit then."""
        now = time.monotonic()
        others = [other for other in residents if other is not resident and other.nbytes]
        taken = self._reserved + sum(other.nbytes for other in others if not other.working)
        going = []
        for other in others:
            if taken + needed <= self.max_bytes:
                break
            if not other.working and other.tenure.over(now):
                taken -= other.nbytes
                going.append(other)
        if taken + needed > self.max_bytes and (others or self._reserved):
            return False
        for other in going:
            self._evict(other, now)
        return True

    def _evict(self, other: Resident, now: float) -> None:
        self.evictions += 1
        if now < other.tenure.used + IDLE:
            logger.warning(
                "epochs of session %s made room although it is in use: its next step has to make them again; "
                "give the server more resident_bytes",
                other.id,
                extra={"fields": {"session": other.id, "bytes": other.nbytes, "resident_bytes": self.max_bytes}},
            )
        other.release()

    def _refusal(self, residents: Sequence[Resident]) -> Refusal:
        self.refusals += 1
        now = time.monotonic()
        ends = [min(one.tenure.until, one.tenure.used + IDLE) - now for one in residents if one.nbytes]
        return Refusal(
            "busy",
            f"the epochs of the sessions in use take all the memory that there is for them, {self.max_bytes} bytes: "
            "this session has its turn soon. More at once fit with a larger setting resident_bytes, or on more servers",
            retry_after=max(1.0, min(ends, default=1.0)),
        )
