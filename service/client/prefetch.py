"""Prefetching of a sampler: a thread that asks for steps ahead, and is left behind when nobody wants them any more.

A daemon thread and not an executor: an executor's is joined as Python ends, so that Ctrl-C would wait for a server
that is away for as long as the client's patience lasts.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from curation.service.client.waiting import Interrupted, interruptible

JOIN_SECONDS = 1.0
"""How long to wait for an answer that is on its way, so that what was reported with it is accounted for."""

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Asks for what it is given in order, in a thread of its own.

    Args:
        ask: int steps, rising by one -> what they are answered with. Steps that wait are asked for together.
    """

    def __init__(self, ask: Callable[[Sequence[int]], Sequence[T]]) -> None:
        self._ask = ask
        self._waiting: deque[tuple[int, Future[T]]] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(self, step: int) -> "Future[T]":
        """Ask for a step; the future has the answer, or what went wrong."""
        future: Future[T] = Future()
        with self._changed:
            self._waiting.append((step, future))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="curation-remote", daemon=True)
            self._thread.start()
        return future

    def close(self) -> None:
        """Ask for nothing more; a request that is on its way is given a moment, and its repeats end at once."""
        with self._changed:
            self._stop.set()
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        with interruptible(self._stop):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                    if self._stop.is_set():
                        return
                    taken = list(self._waiting)
                    self._waiting.clear()
                self._answer(taken)

    def _answer(self, taken: list[tuple[int, "Future[T]"]]) -> None:
        try:
            answers = self._ask([step for step, _ in taken])
            for (_, future), answer in zip(taken, answers, strict=True):
                future.set_result(answer)
        except Interrupted:
            pass
        except BaseException as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
