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

PLAIN: dict[str, Any] = {"infobatch": {"delta": 0.0}, "random": {}}


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
    with Client(server.url, patience=0) as client:
        session = client.create_session(method, size=8, batch_size=4, epochs=6, parameters=PLAIN[method]).id
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
            with pytest.raises(ServiceError, match="before-base: epoch 0 .* starts at epoch 2"):
                client.rewind(session, 1)
        before = client.step(session, 8)
        following = before.indices
        assert client.rewind(session, 6).generation == before.generation + 1
        client.report(session, [(step, batches[step].astype(np.float32)) for step in (6, 7)])
        assert np.array_equal(client.step(session, 8).indices, following)


@pytest.mark.parametrize("method", ["infobatch", "random"])
def test_rows_of_an_epoch_whose_reports_went_are_not_handed_out_again(live: Callable[..., Any], method: str) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = client.create_session(method, size=8, batch_size=4, epochs=6, parameters=PLAIN[method]).id
        train(client, session, 4)
        look_after(server, keep_epochs=2)
        for step in (1, 3):
            with pytest.raises(ServiceError, match="before-base"):
                client.resize(session, 2, generation=client.session(session).generation, from_step=step)
        assert client.resize(session, 2, generation=client.session(session).generation).from_step == 8


@pytest.mark.parametrize(
    "back",
    [
        lambda client, session: client.rewind(session, 1),
        lambda client, session: client.resize(session, 2, generation=client.session(session).generation, from_step=1),
    ],
    ids=["rewind", "resize"],
)
def test_nobody_goes_back_to_an_epoch_whose_reports_go_at_that_moment(
    live: Callable[..., Any], back: Callable[[Client, str], Any]
) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = client.create_session("random", size=8, batch_size=4, epochs=6).id
        train(client, session, 4)
        generation = client.session(session).generation
        store = server.app.state.service.store
        store.forget_reports(store.session(session).key, generation, 4, 2)
        for kind in ("session-changed", "before-base"):
            with pytest.raises(ServiceError) as refused:
                back(client, session)
            assert refused.value.kind in (kind, "before-base")
        assert client.session(session).generation == generation


def test_reports_stay_for_the_rank_that_lags(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = client.create_session("random", size=8, batch_size=2, epochs=6, world_size=2).id
        for rank, epochs in ((0, 4), (1, 1)):
            for step in range(2 * epochs):
                client.step(session, step, rank=rank)
                client.report(session, [(step, np.zeros(2))], rank=rank)
        look_after(server, keep_epochs=2)
        store = server.app.state.service.store
        assert len(list(store.reports(store.session(session).key, 0, 100))) == 10
        assert client.step(session, 2, rank=1).epoch == 1


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
