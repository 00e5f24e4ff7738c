"""Residency of epochs: a limit that holds, turns instead of thrash, and a word about it."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from curation.service.client import Client, ServiceError
from curation.service.errors import Refusal
from curation.service.manager.memory import residency
from curation.service.manager.memory.residency import Residency, Tenure


class Held:
    """A session of so many bytes."""

    def __init__(self, id: str, nbytes: int) -> None:
        self.id, self.nbytes, self.size = id, 0, nbytes
        self.working, self.tenure = False, Tenure()

    def release(self) -> None:
        self.nbytes = 0


def test_epochs_that_open_at_once_keep_to_the_limit_together() -> None:
    held, memory, most = [Held(str(number), 30) for number in range(8)], Residency(100), 0

    async def make(one: Held) -> None:
        nonlocal most
        async with memory.room(one, 30, lambda: held):
            one.working = True
            most = max(most, sum(30 for other in held if other.working))
            await asyncio.sleep(0.01)
            one.working = False

    async def main() -> None:
        await asyncio.gather(*(make(one) for one in held))

    asyncio.run(main())
    assert most == 90


def test_epochs_that_were_made_stay_for_a_while_and_then_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    held, memory = [Held("a", 60), Held("b", 60)], Residency(100)
    clock = 1000.0
    monkeypatch.setattr(residency.time, "monotonic", lambda: clock)

    async def make(one: Held) -> None:
        async with memory.room(one, 60, lambda: held):
            one.nbytes = 60

    async def main() -> None:
        nonlocal clock
        held[0].tenure.used = held[1].tenure.used = clock
        await make(held[0])
        with pytest.raises(Refusal, match="resident_bytes") as refused:
            await make(held[1])
        assert refused.value.kind == "busy"
        assert refused.value.retry_after == pytest.approx(residency.IDLE)
        clock += residency.IDLE + 1
        held[0].tenure.used = clock  # still in use, but it had its turn
        await make(held[1])

    asyncio.run(main())
    assert (held[0].nbytes, memory.evictions, memory.refusals) == (0, 1, 1)


def test_more_sessions_than_fit_take_turns(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(residency, "IDLE", 0.3)
    monkeypatch.setattr(residency, "SHARE", 0)
    server = live(resident_bytes=1_400_000)
    failures: list[Exception] = []

    def train(id: str) -> None:
        try:
            with Client(server.url, patience=30) as client:
                client.create_session("infobatch", id=id, size=100_000, batch_size=4)
                for step in range(40):
                    client.step(id, step)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=train, args=(id,)) for id in ("a", "b", "c", "d")]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    memory = server.app.state.service.sessions.residency
    assert not failures
    assert memory.refusals
    assert 0 < memory.evictions < 20
    with Client(server.url, patience=0) as client:
        metrics = client._http.get("/metrics").text
        assert f"curation_evictions_total {memory.evictions}.0" in metrics
        with pytest.raises(ServiceError, match="resident_bytes"):
            client.create_session("infobatch", size=200_000, batch_size=4)
