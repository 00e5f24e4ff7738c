"""Threads that owners share: nobody's queue holds up another's, and what is cancelled never runs."""

import os
import sys
import threading
import time
from collections.abc import Callable

import pytest

from curation.service.workers.fairness import TENANT, Tenant
from curation.service.workers.threads import FairThreads


def submit_as(threads: FairThreads, tenant: Tenant, work: Callable[[], object]) -> object:
    token = TENANT.set(tenant)
    try:
        return threads.submit(work)
    finally:
        TENANT.reset(token)


def test_an_owner_never_holds_every_thread_and_owners_take_turns() -> None:
    threads, release, begun = FairThreads(2, "test"), threading.Event(), []
    hostile, honest = Tenant("hostile", "a"), Tenant("honest", "b")
    slow = [submit_as(threads, hostile, lambda: begun.append("slow") or release.wait(30)) for _ in range(50)]
    done = submit_as(threads, honest, lambda: "at once")
    assert done.result(timeout=10) == "at once"  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert begun == ["slow"]
    release.set()
    threads.shutdown()
    assert any(one.cancelled() for one in slow)  # type: ignore[attr-defined]


def test_sessions_of_one_owner_take_turns() -> None:
    threads, release, order = FairThreads(1, "test"), threading.Event(), []
    first = submit_as(threads, Tenant("owner", "large"), lambda: release.wait(30))
    for _ in range(20):
        submit_as(threads, Tenant("owner", "large"), lambda: order.append("large"))
    submit_as(threads, Tenant("owner", "small"), lambda: order.append("small"))
    last = [submit_as(threads, Tenant("owner", "small"), lambda: order.append("small")) for _ in range(3)][-1]
    release.set()
    assert first.result(timeout=10)  # type: ignore[attr-defined]
    last.result(timeout=10)  # type: ignore[attr-defined]
    threads.shutdown()
    assert order[:8].count("small") == 4


def test_what_is_cancelled_while_it_waits_never_runs_and_errors_arrive() -> None:
    threads, release, ran = FairThreads(1, "test"), threading.Event(), []
    blocker = threads.submit(release.wait, 30)
    waiting = threads.submit(ran.append, 1)
    assert waiting.cancel()
    release.set()
    assert blocker.result(timeout=10)
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(timeout=10)
    threads.shutdown()
    assert not ran


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a niceness is that of a process")
def test_threads_leave_the_processor_to_the_loop() -> None:
    threads = FairThreads(1, "test")
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    assert threads.submit(os.getpriority, os.PRIO_PROCESS, 0).result(timeout=10) == min(niceness + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    threads.shutdown()
