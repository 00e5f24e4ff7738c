"""Worker processes: their results, their refusals, their deaths, and that nobody's work outlives its caller."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.service.errors import Refusal
from curation.service.workers.processes import Processes


def use(body: Callable[[Processes], Coroutine[Any, Any, Any]], count: int = 1, memory_bytes: int = 1 << 28) -> Any:
    async def run() -> Any:
        processes = Processes(count, memory_bytes)
        try:
            return await body(processes)
        finally:
            processes.stop()

    return asyncio.run(run())


def test_results_come_back_and_processes_are_used_again() -> None:
    async def body(processes: Processes) -> None:
        first = await processes.run(os.getpid)
        values = np.arange(1 << 20, dtype=np.float32)
        assert np.array_equal(await processes.run(np.sort, values[::-1]), values)
        assert await processes.run(os.getpid) == first != os.getpid()
        with pytest.raises(Refusal, match="invalid literal") as refused:
            await processes.run(int, "x")
        assert refused.value.kind == "bad-body"
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await processes.run(divmod, 1, 0)
        assert await processes.run(os.getpid) == first
        # Ten more than the thread that started it.
        assert await processes.run(os.getpriority, os.PRIO_PROCESS, 0) == 15

    use(body)


def test_work_that_nobody_waits_for_is_killed_and_its_slot_is_free() -> None:
    async def body(processes: Processes) -> float:
        pid = await processes.run(os.getpid)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await processes.run(time.sleep, 60)
        other = await processes.run(os.getpid)
        assert other != pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        return time.monotonic() - start

    assert use(body) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
def test_memory_is_bounded_and_a_death_is_a_refusal() -> None:
    async def body(processes: Processes) -> None:
        with pytest.raises(Refusal, match="worker_bytes") as refused:
            await processes.run(bytes, 1 << 30)
        assert refused.value.kind == "too-large"
        assert len(await processes.run(bytes, 1 << 20)) == 1 << 20
        with pytest.raises(Refusal, match=r"ended its process \(SIGSEGV\)"):
            await processes.run(signal.raise_signal, signal.SIGSEGV)
        assert len(await processes.run(bytes, 10)) == 10

    use(body)


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that ends them")
def test_processes_end_with_a_server_that_is_killed() -> None:
    code = """
import asyncio, os, signal, time
from curation.service.workers.processes import Processes
async def run():
    processes = Processes(1, 1 << 28)
    print(await processes.run(os.getpid), flush=True)
    asyncio.create_task(processes.run(time.sleep, 60))
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    stat, deadline = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 10
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
