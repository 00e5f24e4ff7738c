"""Readiness: it writes, says why it cannot, does not wait for a store that hangs, and costs one write a second."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from curation.service.errors import Refusal
from curation.service.monitoring.readiness import Readiness


def test_a_store_that_takes_no_writes_is_not_ready(
    live: Callable[..., Any], assert_problem: Callable[..., dict[str, Any]]
) -> None:
    server = live()
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    engine = server.app.state.service.store.engine
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON").close())
    engine.dispose()
    document = assert_problem(httpx.get(f"{server.url}/readyz"), 503, "store-unavailable")
    assert "attempt to write a readonly database" in document["detail"]
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_many_probes_cost_one_write() -> None:
    writes: list[int] = []

    async def run() -> None:
        ready = Readiness(lambda: writes.append(1), seconds=5)
        await asyncio.gather(*(ready.check() for _ in range(50)))
        await ready.check()
        ready.close()

    asyncio.run(run())
    assert len(writes) == 1


def test_a_store_that_hangs_is_told_of_in_time_and_once_it_answers_all_is_well() -> None:
    answered = threading.Event()

    async def run() -> None:
        ready = Readiness(lambda: answered.wait(20) and None, seconds=0.05)
        for _ in range(2):
            with pytest.raises(Refusal, match="did not answer a write within"):
                await ready.check()
        answered.set()
        for _ in range(100):
            try:
                await ready.check()
                break
            except Refusal:
                await asyncio.sleep(0.01)
        await ready.check()
        ready.close()

    asyncio.run(run())
