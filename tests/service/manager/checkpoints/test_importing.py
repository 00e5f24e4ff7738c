"""Imports that are repeated, and what is in memory after one."""

import re
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import ARROW, Client, ServiceError
from curation.service.errors import Refusal
from curation.service.manager.checkpoints import importing

OPTIONS: dict[str, Any] = {"size": 60, "batch_size": 4, "epochs": 3, "parameters": {"prune_ratio": 0.0}}


def trained(client: Client) -> str:
    """A session in its second epoch."""
    session = client.create_session("infobatch", **OPTIONS).id
    for step in range(15):
        client.report(session, [(step, client.step(session, step).indices.astype(np.float32))])
    client.step(session, 15)
    return session


@pytest.mark.parametrize("query", [{}, {"world_size": 3}, {"world_size": 3, "from_step": 15}], ids=str)
def test_an_import_that_is_repeated_finds_what_it_made(client: Client, http: httpx.Client, query: Any) -> None:
    checkpoint = client.checkpoint(trained(client))

    def send(id: str, body: bytes = checkpoint, **changed: Any) -> httpx.Response:
        headers = {"Content-Type": ARROW}
        return http.post("/v1/sessions/import", params={"id": id, **query, **changed}, content=body, headers=headers)

    id = f"again-{len(query)}"
    first, again = send(id), send(id)
    assert (first.status_code, again.status_code) == (201, 200), again.text
    assert again.json() == first.json()
    assert client.step(id, 15).epoch == 1
    client.rewind(id, 15)
    assert (send(id).json()["generation"], send(id).status_code) == (first.json()["generation"] + 1, 200)
    other = client.checkpoint(client.create_session("infobatch", **OPTIONS).id)
    for answer in (send(id, other), send(id, world_size=2), http.post("/v1/sessions", json={"id": id, **OPTIONS})):
        assert answer.status_code in (409, 422), answer.text
    assert send(id, other).json()["type"] == "urn:curation:problem:id-taken"
    created = client.create_session("random", size=60, batch_size=4).id
    assert send(created).json()["type"] == "urn:curation:problem:id-taken"


def test_an_import_for_other_ranks_that_broke_off_is_finished(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = client.checkpoint(trained(client))
    resize = importing.resize

    async def broken(*given: Any) -> Any:
        monkeypatch.setattr(importing, "resize", resize)
        raise OSError("the server dies here")

    monkeypatch.setattr(importing, "resize", broken)
    with pytest.raises(ServiceError, match="internal"):
        client.restore(checkpoint, "broken", world_size=2)
    assert client.session("broken").world_size == 1
    assert client.restore(checkpoint, "broken", world_size=2).world_size == 2
    client.resize("broken", 5, generation=client.session("broken").generation)
    assert client.restore(checkpoint, "broken", world_size=2).world_size == 5


def test_a_repeat_that_is_refused_removes_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, refusals = (
        client.checkpoint(trained(client)),
        [OSError("the server dies here"), Refusal("busy", "full")],
    )

    async def broken(*given: Any) -> Any:
        raise refusals.pop(0)

    monkeypatch.setattr(importing, "resize", broken)
    for kind in ("internal", "busy"):
        with pytest.raises(ServiceError, match=kind):
            client.restore(checkpoint, "reported", world_size=2)
        client.report("reported", [(15, client.step("reported", 15).indices.astype(np.float32))])
    assert client.session("reported").raw["ranks"][0]["reports"] > 0


def test_imports_at_once_make_one_session(url: str, client: Client) -> None:
    checkpoint = client.checkpoint(trained(client))
    found: list[tuple[int, int]] = []

    def restore() -> None:
        with Client(url, patience=20) as own:
            info = own.restore(checkpoint, "at-once", world_size=3)
            found.append((info.generation, info.world_size))

    threads = [threading.Thread(target=restore) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0][1] == 3


def test_what_cannot_be_laid_out_leaves_no_session(client: Client) -> None:
    checkpoint = client.checkpoint(trained(client))
    for _ in range(2):
        with pytest.raises(ServiceError, match="bad-step"):
            client.restore(checkpoint, "nowhere", world_size=2, from_step=10**6)
    assert client.restore(checkpoint, "nowhere", world_size=2).world_size == 2


def made_again(url: str) -> float:
    """Epochs that a server made again since it started."""
    line = re.search(r'^curation_epoch_seconds_count\{.*"again".*\} (.*)$', httpx.get(f"{url}/metrics").text, re.M)
    assert line is not None
    return float(line[1])


@pytest.mark.parametrize("world_size", [None, 3])
def test_the_epoch_that_an_import_made_is_not_made_again(live: Callable[..., Any], world_size: int | None) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = trained(client)
        copy = client.restore(client.checkpoint(session), world_size=world_size).id
        assert client.session(copy).raw["resident_bytes"] > 0
        rows = [client.step(copy, 15, rank=rank).indices for rank in range(world_size or 1)]
        assert made_again(server.url) == 0
        server.stop()
        server.start()
        for rank, batch in enumerate(rows):
            assert np.array_equal(client.step(copy, 15, rank=rank).indices, batch)
        assert made_again(server.url) == 1
