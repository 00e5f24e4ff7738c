"""Worker process: runs one function after another for its server, with a bound on memory, until it is not needed."""

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from curation.errors import CurationError
from curation.service.errors import Refusal
from curation.service.workers import frames

IDLE_SECONDS = 300
"""A worker that nobody needed for so long ends."""
_NICENESS = 10
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Job(NamedTuple):
    """Work for a process. ``function`` is one of a module, and may grow the process by ``memory_bytes``; arguments
    that are bytes come as views."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    memory_bytes: int


class Outcome(NamedTuple):
    """A job's result; or, as (kind, detail, members), why it was refused; or the traceback of a fault."""

    result: Any = None
    refusal: tuple[str, str, dict[str, Any]] | None = None
    fault: str | None = None


def main(descriptor: int, parent: int) -> None:
    """Serve the jobs that come over a socket, until the other side is gone or nothing comes for long."""
    _step_back(parent)
    with socket.socket(fileno=descriptor) as connection:
        while select.select([connection], [], [], IDLE_SECONDS)[0]:
            try:
                job: Job = frames.receive(connection)
            except EOFError:
                return
            frames.send(connection, _done(job))
            del job


def _done(job: Job) -> Outcome:
    _bound_memory(job.memory_bytes)
    try:
        return Outcome(job.function(*[bytes(one) if isinstance(one, memoryview) else one for one in job.arguments]))
    except Refusal as refusal:
        return Outcome(refusal=(refusal.kind, refusal.detail, refusal.members))
    except (ValueError, TypeError, CurationError) as error:
        return Outcome(refusal=("bad-body", str(error), {}))
    except Exception as error:
        # torch says it in a RuntimeError.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            detail = f"this takes more than {job.memory_bytes} bytes of memory, the server's limit (worker_bytes)"
            return Outcome(refusal=("too-large", detail, {}))
        return Outcome(fault=traceback.format_exc())


def _step_back(parent: int) -> None:
    """Leave processor and memory to the server, end with it, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    with suppress(OSError):  # where a sandbox forbids it, they compete
        os.nice(_NICENESS)
        Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        sys.exit()


def _bound_memory(more: int) -> None:
    """Let this process grow by so many bytes of private memory and no further; on Linux only."""
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + more, hard))
