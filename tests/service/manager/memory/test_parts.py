"""Parts of super-batches: in memory on one server, sent again where they were lost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from curation.pair import Pair
from curation.service.client import Client, ServiceError
from curation.service.store.tables import blobs

RANKS = 2


def stored_parts(server: Any) -> int:
    with server.app.state.service.store.engine.connect() as connection:
        query = select(func.count()).select_from(blobs).where(blobs.c.kind.like("choice-part%"))
        return int(connection.execute(query).scalar_one())


def pairs(client: Client, session: str, rank: int) -> list[Pair]:
    rows = client.step(session, 0, rank=rank).indices
    rng = np.random.default_rng(0)
    return [Pair(*rng.normal(size=(2, 64, 4)).astype(np.float32)[:, rows], 5.0, -5.0) for _ in range(2)]


def chosen(server: Any, *, restart: bool) -> list[Any]:
    with Client(server.url, patience=0) as client:
        session = client.create_session("jest", size=64, batch_size=8, world_size=RANKS, seed=1).id
        first, second = (pairs(client, session, rank) for rank in range(RANKS))
        with pytest.raises(ServiceError, match="missing-reports"):
            client.choose(session, 0, *first, rank=0)
        with pytest.raises(ServiceError, match="report-differs"):
            client.choose(session, 0, first[1], first[0], rank=0)
        if restart:
            server.stop()
            server.start()
            with pytest.raises(ServiceError, match="not-sent"):
                client.choose(session, 0, rank=0)
            with pytest.raises(ServiceError, match="missing-reports"):
                client.choose(session, 0, *first, rank=0)
        own = client.choose(session, 0, *second, rank=1)
        return [client.choose(session, 0, rank=0).indices, own.indices]


def test_parts_need_no_disk_and_may_be_lost(live: Callable[..., Any]) -> None:
    server, spilling = live(), live(part_bytes=100)
    undisturbed = chosen(server, restart=False)
    again = chosen(server, restart=True)
    spilt = chosen(spilling, restart=False)
    assert all(np.array_equal(undisturbed[rank], other[rank]) for other in (again, spilt) for rank in range(RANKS))


def test_what_memory_has_no_room_for_goes_to_the_store(live: Callable[..., Any]) -> None:
    for server, parts in ((live(), 0), (live(part_bytes=100), 1)):
        with Client(server.url, patience=0) as client:
            session = client.create_session("jest", size=64, batch_size=8, world_size=RANKS).id
            with pytest.raises(ServiceError, match="missing-reports"):
                client.choose(session, 0, *pairs(client, session, 0), rank=0)
            assert stored_parts(server) == parts
