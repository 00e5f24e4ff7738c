"""Upkeep: reports of old epochs and sessions that nobody used go where the settings say so, and nothing else does."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from curation.service.client import Client, ServiceError
from curation.service.manager.upkeep import DAY, Upkeep
from curation.service.store.tables import sessions


def train(client: Client, session: str, epochs: int) -> dict[int, Any]:
    """Two steps of four rows an epoch; the batches by step."""
    batches = {}
    for step in range(2 * epochs):
        batches[step] = client.step(session, step).indices
        client.report(session, [(step, batches[step].astype(np.float32))])
    return batches


def look_after(server: Any, **settings: Any) -> None:
    state = server.app.state.service
    upkeep = Upkeep(state.sessions, **{"keep_days": None, "keep_epochs": None, **settings})
    upkeep._noted = 0
    asyncio.run(upkeep.once())
    state.store.remover.wait()


@pytest.mark.parametrize("method", ["infobatch", "random"])
def test_reports_of_old_epochs_go_and_the_session_goes_on(live: Callable[..., Any], method: str) -> None:
    server = live()
    options = {"delta": 0.0} if method == "infobatch" else {}
    with Client(server.url, patience=0) as client:
        session = client.create_session(method, size=8, batch_size=4, epochs=6, parameters=options).id
        batches = train(client, session, 4)
        look_after(server, keep_epochs=None)
        store = server.app.state.service.store
        key = store.session(session).key
        assert [report.step for report in store.reports(key, 0, 100)] == list(range(8))
        look_after(server, keep_epochs=2)
        assert [report.step for report in store.reports(key, 0, 100)] == [4, 5, 6, 7]
        for restarted in (False, True):
            if restarted:
                server.stop()
                server.start()
            for step in (4, 5, 6, 7):
                assert np.array_equal(client.step(session, step).indices, batches[step])
            if method == "infobatch":
                with pytest.raises(ServiceError, match="before-base"):
                    client.rewind(session, 1)
        before = client.step(session, 8)
        following = before.indices
        assert client.rewind(session, 6).generation == before.generation + 1
        client.report(session, [(step, batches[step].astype(np.float32)) for step in (6, 7)])
        assert np.array_equal(client.step(session, 8).indices, following)


def test_sessions_that_nobody_used_go(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        for id in ("used", "unused"):
            client.create_session("random", id=id, size=8, batch_size=4)
        store = server.app.state.service.store
        with store.writing() as connection:
            connection.execute(update(sessions).values(created=sessions.c.created - 3 * DAY))
        server.app.state.service.sessions.evict("unused")
        client.step("used", 0)
        look_after(server, keep_days=4)
        assert [one["id"] for one in client.sessions()] == ["used", "unused"]
        look_after(server, keep_days=2)
        assert [one["id"] for one in client.sessions()] == ["used"]
        with pytest.raises(ServiceError, match="not-found"):
            client.step("unused", 0)
