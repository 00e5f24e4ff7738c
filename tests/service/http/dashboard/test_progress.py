"""Standing and ranks of sessions, over HTTP; the list and the page say the same."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import Client
from curation.service.manager.sessions import Entry
from curation.service.session.session import Report
from curation.service.store.reports import Write


@pytest.fixture(scope="module")
def server(live: Callable[..., Any]) -> Any:
    return live()


def views(url: str, id: str, query: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """The line of the list and the page."""
    lines = httpx.get(f"{url}/dashboard/sessions", params={"search": id}).json()["sessions"]
    return next(line for line in lines if line["id"] == id), httpx.get(f"{url}/dashboard/sessions/{id}{query}").json()


def test_an_unused_session_is_not_begun(server: Any) -> None:
    with Client(server.url) as client:
        client.create_session("infobatch", size=1000, batch_size=10, epochs=10, id="unused")
    line, page = views(server.url, "unused")
    assert line["standing"] == page["standing"]
    standing = page["standing"]
    assert (standing["status"], standing["done"], standing["step"], standing["active"]) == ("idle", 0, None, None)
    assert page["losses"]["points"] == []


def test_the_rank_that_is_waited_for_is_named_and_when_it_was_here(server: Any) -> None:
    with Client(server.url, patience=0) as client:
        client.create_session("infobatch", size=80, batch_size=10, epochs=3, world_size=4, id="waits")
        for step in range(2):
            for rank in range(4):
                batch = client.step("waits", step, rank=rank)
                if (step, rank) != (1, 3):
                    client.report("waits", [(step, np.ones(len(batch.indices)))], rank=rank)
    line, page = views(server.url, "waits")
    assert line["standing"] == page["standing"]
    standing = page["standing"]
    assert (standing["status"], standing["waits_for"], standing["waits_for_count"]) == ("waiting", [3], 1)
    assert 0 < standing["waits_since"] <= standing["active"]
    assert standing["done"] == pytest.approx(1 / 3)
    assert [(rank["rank"], rank["behind"]) for rank in page["ranks"]["lines"]] == [(3, 1), (0, 0), (1, 0), (2, 0)]
    server.stop()
    server.start()
    line, page = views(server.url, "waits")
    assert (page["standing"]["status"], page["standing"]["waits_since"]) == ("waiting", None)


@pytest.mark.parametrize(("world_size", "per_cell"), [(1000, 1), (5000, 5)])
def test_many_ranks_are_aggregated_and_laggards_come_first(server: Any, world_size: int, per_cell: int) -> None:
    id = f"ranks-{world_size}"
    with Client(server.url) as client:
        client.create_session("random", size=4 * world_size, batch_size=1, world_size=world_size, id=id)
    entry: Entry = next(entry for entry in server.app.state.service.sessions.in_memory if entry.row.id == id)
    reported = {17: 1, 640: 2, 999: 0}
    losses = np.ones(1, np.float32)
    told = [Report(rank, step, losses) for rank in range(world_size) for step in range(reported.get(rank, 4))]
    server.app.state.service.store.add_reports([Write(entry.row.key, entry.row.generation, told)])
    server.app.state.service.sessions.evict(id)  # its reports were stored past the server
    ranks = views(server.url, id)[1]["ranks"]
    assert (ranks["total"], ranks["started"], ranks["behind"], ranks["per_cell"]) == (
        world_size,
        world_size - 1,
        3,
        per_cell,
    )
    assert len(ranks["cells"]) == 1000
    wanted = {17 // per_cell: 3, 640 // per_cell: 2, 999 // per_cell: -1}
    assert {cell: behind for cell, behind in enumerate(ranks["cells"]) if behind} == wanted
    assert [rank["rank"] for rank in ranks["lines"][:4]] == [999, 17, 640, 0]
    some = views(server.url, id, "?rank=640")[1]["ranks"]["lines"]
    assert (some[0]["rank"], some[0]["behind"], some[0]["reports"], len(some)) == (640, 2, 2, 50)


def test_large_parameters_are_cut_short(server: Any) -> None:
    batches = [[2 * row, 2 * row + 1] for row in range(5000)]
    with Client(server.url) as client:
        client.create_session("plan", size=10_000, batch_size=2, id="large", parameters={"batches": batches})
    answer = httpx.get(f"{server.url}/dashboard/sessions/large")
    assert "batches" not in answer.json()["parameters"]  # stored as the table it is
    assert len(answer.content) < 5000
