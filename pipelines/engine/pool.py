"""Pools of Ray workers: pieces of work, a bounded number under way at a time, each begun anew where its worker dies.

Ray's own retries are off: it does not count those of a worker that was killed for want of memory, and so has no end.
"""

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from curation.errors import StepError

TRIES = 5
"""How often a piece is begun whose worker dies."""

PAUSE = 1.0
"""Seconds before a piece that ran out of memory is begun anew; twice as many each time."""

LOST = (OutOfMemoryError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, RayActorError)
"""What Ray raises of a piece whose worker died."""

ENDING = 0.5
"""Seconds in which tasks that are nearly done may end before they are interrupted."""
LAST_WORDS = 5.0
"""Seconds that interrupted tasks have to end."""

REVIEW = 10.0
"""Seconds after which the room is asked for again: a cluster may grow."""

Result: TypeAlias = "ray.ObjectRef[Any]"


class Piece(Protocol):
    """A unit of work."""

    @property
    def number(self) -> int:
        """From 0, without gaps."""

    @property
    def rows(self) -> int:
        """What finishing it adds to the progress."""


class Workers(Protocol):
    """What pieces are given to."""

    running: dict[Result, Piece | None]
    """What is under way; None for what is no piece."""

    def free(self) -> bool:
        """Whether another piece can be given."""

    def begin(self, piece: Piece) -> None:
        """Give a piece."""

    def ended(self, result: Result, lost: bool) -> None:
        """Told that a result is there, or lost with its worker."""

    def close(self) -> None:
        """Stop what is still under way."""


class Tasks:
    """A Ray task for each piece.

    Args:
        work: called with ``shared`` and a piece, in a worker.
        shared: what all of them are given.
        label: what Ray calls them.
        options: what one asks of Ray.
        room: how many may be under way; asked again from time to time.
    """

    def __init__(
        self,
        work: Callable[[Any, Piece], bytes],
        shared: Result,
        label: str,
        options: dict[str, Any],
        room: Callable[[], int],
    ) -> None:
        self.running: dict[Result, Piece | None] = {}
        remote: Any = ray.remote
        self._remote = remote(max_retries=0, name=label, **options)(work)
        self._shared = shared
        self._ask, self._room, self._asked = room, room(), time.monotonic()

    def free(self) -> bool:
        """Whether fewer are under way than there is room for."""
        if time.monotonic() > self._asked + REVIEW:
            self._room, self._asked = self._ask(), time.monotonic()
        return len(self.running) < self._room

    def begin(self, piece: Piece) -> None:
        """Give a piece to whichever worker Ray finds."""
        self.running[self._remote.remote(self._shared, piece)] = piece

    def ended(self, result: Result, lost: bool) -> None:
        """Nothing is kept of a task."""

    def close(self) -> None:
        """Interrupt them, and kill those that go on all the same: what they write appears whole or not at all."""
        results = list(self.running)
        # To interrupt or kill a task in the moment in which it ends may take this process with it (Ray 2.60).
        _, results = ray.wait(results, num_returns=len(results), timeout=ENDING) if results else ([], [])
        for result in results:
            ray.cancel(result)
        _, going_on = ray.wait(results, num_returns=len(results), timeout=LAST_WORDS) if results else ([], [])
        for result in going_on:
            ray.cancel(result, force=True)


class Actors:
    """Processes that each keep what they made for one piece for the next; one that dies is replaced.

    Args:
        worker: a class of ``shared`` with a method ``work`` of a piece; its instances live in the processes.
        shared: what each of them is given.
        label: what Ray calls them.
        options: what one asks of Ray.
        size: how many.
    """

    def __init__(
        self,
        worker: type[Any],
        shared: Result,
        label: str,
        options: dict[str, Any],
        size: int,
    ) -> None:
        self.running: dict[Result, Piece | None] = {}
        remote: Any = ray.remote
        self._remote = remote(max_restarts=0, max_task_retries=0, **options)(worker)
        self._shared, self._label = shared, label
        self._at: dict[Result, Any] = {}
        self._idle: list[Any] = []
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        actor = self._remote.remote(self._shared)
        # It gets its first piece when it is there: on a full cluster some may never be.
        hello = actor.__ray_ready__.remote()
        self.running[hello], self._at[hello] = None, actor

    def free(self) -> bool:
        """Whether one waits for a piece."""
        return bool(self._idle)

    def begin(self, piece: Piece) -> None:
        """Give a piece to one that waits."""
        actor = self._idle.pop()
        result = actor.work.options(name=self._label).remote(piece)
        self.running[result], self._at[result] = piece, actor

    def ended(self, result: Result, lost: bool) -> None:
        """Have its worker wait again, or another in its place."""
        actor = self._at.pop(result)
        if lost:
            self._hire()
        else:
            self._idle.append(actor)

    def close(self) -> None:
        """Kill all of them."""
        for actor in [*self._idle, *self._at.values()]:
            ray.kill(actor)


def work_off(workers: Workers, pieces: Sequence[Piece], label: str) -> Generator[tuple[Piece, bytes], None, None]:
    """Give out all pieces and yield each with what its work returned, as they end.

    Raises:
        StepError: a piece lost its worker :data:`TRIES` times, or Ray cannot run it at all.
    """
    waiting, resting = deque(pieces), list[tuple[float, int, Piece]]()
    lost = Counter[int | None]()
    left = len(pieces)
    try:
        while left:
            while resting and resting[0][0] <= time.monotonic():
                waiting.append(heapq.heappop(resting)[2])
            while waiting and workers.free():
                workers.begin(waiting.popleft())
            for result, piece in _next(workers, resting[0][0] if resting else None):
                number = None if piece is None else piece.number
                try:
                    returned = ray.get(result)
                except LOST as error:
                    lost[number] += 1
                    if lost[number] == TRIES:
                        raise StepError(_given_up(label, number, error)) from error
                    workers.ended(result, True)
                    if piece is not None and isinstance(error, OutOfMemoryError):
                        rest = PAUSE * 2 ** (lost[number] - 1)
                        heapq.heappush(resting, (time.monotonic() + rest, piece.number, piece))
                    elif piece is not None:
                        waiting.append(piece)
                except RayError as error:
                    raise StepError(f"{label}: Ray cannot run it: {_last_line(error)}") from error
                else:
                    lost.pop(number, None)
                    workers.ended(result, False)
                    if piece is not None:
                        left -= 1
                        yield piece, returned
    finally:
        workers.close()


def _next(workers: Workers, until: float | None) -> list[tuple[Result, Piece | None]]:
    """What has ended, one at least unless the time ``until`` comes first; it is no longer running."""
    seconds = None if until is None else max(0.0, until - time.monotonic())
    if not workers.running:
        time.sleep(seconds or 0)
        return []
    results = list(workers.running)
    if not ray.wait(results, timeout=seconds)[0]:
        return []
    ready, _ = ray.wait(results, num_returns=len(results), timeout=0)
    return [(result, workers.running.pop(result)) for result in ready]


def _given_up(label: str, number: int | None, error: RayError) -> str:
    what = "a worker" if number is None else f"piece {number}"
    if isinstance(error, OutOfMemoryError):
        why = f"was killed for want of memory {TRIES} times"
    else:
        why = f"lost its process {TRIES} times, most likely for want of memory ({_last_line(error)})"
    return (
        f"{label}: {what} {why}. Ask for more `memory_mib` or `cpus` in `resources` (of the step; of the recipe for "
        "`check rows`; of `output` for what is written), so that fewer run at a time, and run again: what was finished "
        "is kept. A lower `block_bytes` makes pieces smaller, and begins anew. Ray's logs "
        "(/tmp/ray/session_latest/logs) say how a worker died"
    )


def _last_line(error: RayError) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].rstrip(".") if lines else type(error).__name__
