"""Standing and ranks of sessions, over HTTP; the list and the page say the same."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from curation.service.client import Client, ServiceError
from curation.service.manager.memory.entry import Entry
from curation.service.manager.upkeep import Upkeep
from curation.service.monitoring import standing
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


def test_a_rank_that_left_out_a_step_is_waited_for(server: Any) -> None:
    with Client(server.url, patience=0) as client:
        client.create_session("infobatch", size=80, batch_size=10, epochs=3, world_size=2, id="gap")
        for rank, steps in ((0, (0, 1, 2, 3)), (1, (0, 2, 3))):
            for step in steps:
                batch = client.step("gap", step, rank=rank)
                client.report("gap", [(step, np.ones(len(batch.indices)))], rank=rank)
        with pytest.raises(ServiceError, match="missing-reports"):
            client.step("gap", 4, rank=0)
        for view in views(server.url, "gap"):
            standing = view["standing"]
            assert (standing["status"], standing["waits_for"]) == ("waiting", [1])
        assert statuses(server.url)["waiting"] >= 1
        client.report("gap", [(1, np.ones(10))], rank=1)
        client.step("gap", 4, rank=0)
    assert [view["standing"]["status"] for view in views(server.url, "gap")] == ["running", "running"]


def statuses(url: str) -> dict[str, float]:
    """The sessions of a scrape, by state."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = next(family.samples for family in families if family.name == "curation_sessions")
    return {sample.labels["state"]: sample.value for sample in samples}


def test_the_metrics_have_the_statuses_of_the_dashboard(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        for id, loss in (("finished", 1.0), ("diverged", np.nan)):
            client.create_session("random", size=20, batch_size=5, id=id)
            for step in range(4):
                client.report(id, [(step, np.full(5, loss))])
        client.create_session("random", size=20, batch_size=5, id="idle")
        client.create_session("random", size=20, batch_size=5, id="running")
        client.step("running", 2)
    listed = httpx.get(f"{server.url}/dashboard/sessions").json()["sessions"]
    assert {line["id"]: line["standing"]["status"] for line in listed} == {line["id"]: line["id"] for line in listed}
    ones = dict.fromkeys(("idle", "running", "finished", "diverged"), 1)
    assert statuses(server.url) == {"waiting": 0, "stalled": 0} | ones


def test_the_metrics_outlive_the_store(live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = live()
    with Client(server.url) as client:
        client.create_session("random", size=20, batch_size=5, id="seen")
        client.step("seen", 0)

    def broken(*_: Any) -> Any:
        raise OperationalError("select", {}, OSError("disk"))

    monkeypatch.setattr(standing, "last_reported", broken)
    assert statuses(server.url)["running"] == 1


def test_a_resized_session_has_the_ranks_of_now(server: Any) -> None:
    with Client(server.url, patience=0) as client:
        client.create_session("infobatch", size=320, batch_size=10, epochs=2, world_size=4, id="resized")
        for step in range(2):
            for rank in range(4):
                batch = client.step("resized", step, rank=rank)
                client.report("resized", [(step, np.ones(len(batch.indices)))], rank=rank)
        for world_size in (2, 3):
            client.resize("resized", world_size, generation=client.session("resized").generation)
            line, page = views(server.url, "resized")
            assert line["world_size"] == page["ranks"]["total"] == world_size
            assert page["ranks"]["started"] <= world_size
            assert page["ranks"]["behind"] == 0
            assert line["standing"]["active"] is not None
            assert {one["id"]: one["world_size"] for one in client.sessions()}["resized"] == world_size
        assert page["resized"] == 2


def test_when_a_session_was_used_last_outlives_changes_and_looks_are_no_use(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        client.create_session("infobatch", size=80, batch_size=10, epochs=3, id="used")
        client.create_session("random", size=80, batch_size=10, id="looked-at")
        client.batches("used", 0, steps=2)
        before = views(server.url, "used")[0]["standing"]["active"]
        client.rewind("used", 0)
        assert views(server.url, "used")[0]["standing"]["active"] >= before
        views(server.url, "looked-at")
        state = server.app.state.service
        upkeep = Upkeep(state.sessions, keep_days=None, keep_epochs=None)
        upkeep._noted = 0
        asyncio.run(upkeep.once())
        assert (state.store.session("used").used or 0) >= before
        assert state.store.session("looked-at").used is None
        server.stop()
        server.start()
        assert views(server.url, "used")[1]["standing"]["active"] >= before


def test_all_ranks_of_a_host_were_here(server: Any) -> None:
    with Client(server.url, patience=0) as client:
        client.create_session("random", size=80, batch_size=10, world_size=2, id="host")
        client.batches("host", 0, steps=2, ranks=[0, 1])
    assert all(rank["seen"] for rank in views(server.url, "host")[1]["ranks"]["lines"])
