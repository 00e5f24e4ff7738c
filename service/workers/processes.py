"""Processes for work that may take long or much memory: killed, and replaced, as soon as nobody waits for it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from threading import Lock
from typing import TypeVar

from curation.service.errors import Refusal
from curation.service.workers import frames
from curation.service.workers.child import Job, Outcome
from curation.service.workers.threads import FairThreads

T = TypeVar("T")

_LAST_WORDS = 0.2
"""Seconds in which a process that has closed its socket may end by itself, and so say why."""
_CHILD = "import sys; sys.path[:] = {path!r}; from curation.service.workers.child import main; main({fd}, {parent})"


class Processes:
    """Worker processes, started when they are first needed.

    Args:
        count: how many there are at most.
        memory_bytes: by how much a piece of work may grow its process.
    """

    def __init__(self, count: int, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._threads = FairThreads(count, "curation-processes")
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._lock = Lock()
        self._stopped = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a module's function in a process, in turn with other owners' work, and return what it does.

        When the caller is cancelled, the process is killed, or the call never begins.

        Raises:
            Refusal: the function raised one, or a ``ValueError`` or ``TypeError`` (``bad-body``); or it takes too
                much memory (``too-large``).
            RuntimeError: the function failed; the message has its traceback.
        """
        call = _Call()
        # Bytes stand beside a pickle only as buffers: those of a large body are then not copied here.
        given = tuple(PickleBuffer(one) if isinstance(one, bytes) else one for one in arguments)
        job = Job(function, given, self._memory_bytes)
        try:
            outcome: Outcome = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, call, job)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if outcome.fault is not None:
            raise RuntimeError(f"a worker process failed:\n{outcome.fault}")
        if outcome.refusal is not None:
            kind, detail, members = outcome.refusal
            raise Refusal(kind, detail, **members)
        result: T = outcome.result
        return result

    def stop(self) -> None:
        """Kill all processes."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            for process in (*idle, *self._busy):
                process.kill()
        for process in idle:
            process.close()
        self._threads.shutdown()

    def _run(self, call: "_Call", job: Job) -> Outcome:
        while True:
            with self._lock:
                reused = bool(self._idle)
                process = self._idle.pop() if reused else _Process()
                self._busy.add(process)
            call.begin(process)
            outcome: Outcome | None = None
            try:
                outcome = process.do(job)
            except (EOFError, OSError):
                pass
            finally:
                # Only one that has answered, and that nobody has killed, can do more work.
                kept = self._give_back(process, call.finish() and outcome is not None)
            if kept and outcome is not None:
                return outcome
            status = process.close()
            if outcome is not None or call.cancelled or self._stopped:
                return outcome or Outcome()
            if not reused or status != 0:
                name = signal.Signals(-status).name if status < 0 else f"status {status}"
                return Outcome(refusal=("too-large", f"the work ended its process ({name}): send less at once", {}))
            # It had been idle for long, and ended just as this came: another one.

    def _give_back(self, process: "_Process", usable: bool) -> bool:
        with self._lock:
            self._busy.discard(process)
            kept = usable and not self._stopped
            if kept:
                self._idle.append(process)
        return kept


class _Call:
    """What one caller waits for."""

    def __init__(self) -> None:
        self.cancelled = False
        self._process: _Process | None = None
        self._lock = Lock()

    def begin(self, process: "_Process") -> None:
        """The process works for this call."""
        with self._lock:
            self._process = process
            if self.cancelled:
                process.kill()

    def finish(self) -> bool:
        """The process works for it no more; False where it was killed."""
        with self._lock:
            self._process = None
            return not self.cancelled

    def cancel(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self.cancelled = True
            if self._process is not None:
                self._process.kill()


class _Process:
    """One process, and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = _CHILD.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = ours

    def do(self, job: Job) -> Outcome:
        """Raises ``EOFError`` or ``OSError`` where the process ends instead."""
        frames.send(self._connection, job)
        outcome: Outcome = frames.receive(self._connection)
        return outcome

    def kill(self) -> None:
        """End it; whoever waits for it notices."""
        self._process.kill()

    def close(self) -> int:
        """Let go of what it held; its status, or the negative number of the signal that ended it."""
        try:
            status = self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._connection.close()
        return status
