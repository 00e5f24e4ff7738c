"""Threads that owners and sessions share fairly: an executor for :func:`asyncio.to_thread`, or for one purpose."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Lock, get_native_id
from typing import Any, TypeVar

from curation.service.workers.fairness import TENANT, FairQueue, Tenant

T = TypeVar("T")
_NICENESS = 5


class FairThreads(ThreadPoolExecutor):
    """A thread pool whose queue is a :class:`FairQueue`, by the tenant of whoever submits.

    Args:
        threads: how many there are.
        name: what their names begin with.
        share: how many of them one owner may hold; by default all but one, so that no owner holds up all others.
    """

    def __init__(self, threads: int, name: str, share: int | None = None) -> None:
        super().__init__(threads, name, _step_back)
        self._queue: FairQueue[tuple[Future[Any], Callable[[], Any]]] = FairQueue(share or max(1, threads - 1))
        self._free = threads
        self._turns = Lock()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """As :meth:`ThreadPoolExecutor.submit`; what is cancelled while it waits never runs."""
        future: Future[T] = Future()
        with self._turns:
            self._queue.put(TENANT.get(), (future, partial(fn, *args, **kwargs)))
            self._start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As :meth:`ThreadPoolExecutor.shutdown`; what still waits for its turn is cancelled."""
        with self._turns:
            for future, _ in self._queue.clear():
                future.cancel()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _start(self) -> None:
        while self._free and (taken := self._queue.take()) is not None:
            self._free -= 1
            super().submit(self._run, *taken)

    def _run(self, tenant: Tenant, work: tuple[Future[Any], Callable[[], Any]]) -> None:
        future, function = work
        try:
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
        finally:
            del future, function, work
            with self._turns:
                self._free += 1
                self._queue.done(tenant)
                self._start()


def _step_back() -> None:
    """Leave the processor to the server's loop and its writer: what runs in a pool may take seconds."""
    if sys.platform == "linux":  # where threads have a niceness of their own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICENESS)
