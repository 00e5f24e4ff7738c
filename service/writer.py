"""Group commit: one thread writes the reports of all requests that wait, in one transaction, and then answers them."""

import asyncio
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from curation.service.sessions import Report
from curation.service.store import Store, Write

GROUP = 512


class _Waiting(NamedTuple):
    write: Write
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"


class Writer:
    """Turns many small commits into few: while one is on its way to the disk, the next group gathers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="curation-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def submit(self, key: int, generation: int, reports: Sequence[Report]) -> "asyncio.Future[None]":
        """Queue a request's reports; the future is done once they are on disk.

        It fails with ``Refusal`` where the session changed, and with what the database raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Waiting(Write(key, generation, reports), loop, future))
        return future

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group, stop = [first], False
            while len(group) < GROUP:
                try:
                    waiting = self._queue.get_nowait()
                except Empty:
                    break
                if waiting is None:
                    stop = True
                    break
                group.append(waiting)
            self._commit(group)
            if stop:
                return

    def _commit(self, group: list[_Waiting]) -> None:
        outcomes: Sequence[Exception | None]
        try:
            outcomes = self._store.add_reports([waiting.write for waiting in group])
        except Exception as error:
            outcomes = [error] * len(group)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], Exception | None]]] = {}
        for waiting, outcome in zip(group, outcomes, strict=True):
            by_loop.setdefault(waiting.loop, []).append((waiting.future, outcome))
        for loop, answers in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_answer, answers)


def _answer(answers: list[tuple["asyncio.Future[None]", Exception | None]]) -> None:
    for future, outcome in answers:
        if future.done():
            continue
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)
