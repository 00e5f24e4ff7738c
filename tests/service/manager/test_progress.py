"""Progress of ranks: kept, not counted, whatever order reports come in and whoever stores them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.selectors.samplers.split import RowSplit
from curation.service.client import Client, ServiceError
from curation.service.manager.progress import missing_reports
from curation.service.session.caller import ANYONE
from curation.service.session.session import EpochRecord, Report
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.reports import Write


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that reports are read to be counted, or to see which are missing."""
    reads: list[str] = []
    for name in ("progress", "reported"):
        method = getattr(Store, name)
        monkeypatch.setattr(
            Store, name, lambda self, *rest, _name=name, _method=method: (reads.append(_name), _method(self, *rest))[1]
        )
    return reads


def losses(rows: int = 4) -> np.ndarray[Any, Any]:
    return np.zeros(rows, np.float32)


def test_ranks_are_counted_once_and_kept_from_then_on(live: Callable[..., Any], counted: list[str]) -> None:
    server = live()
    with Client(server.url) as client:
        session = client.create_session("random", size=1000, batch_size=4, world_size=3).id
        for step in range(3):
            for rank in (0, 2):
                client.step(session, step + 1, rank=rank, reports=[(step, losses())])
            ranks = {one["rank"]: one for one in client.session(session).raw["ranks"]}
            assert ranks == {
                rank: {"rank": rank, "last_asked": step + 1, "reports": step + 1, "last_reported": step}
                for rank in (0, 2)
            }
        assert counted == ["progress"]
        client.report(session, [(2, losses())])  # again: whether it was there already has to be looked up
        server.app.state.service.sessions.in_memory[-1].progress._count_again = 0
        assert client.session(session).raw["ranks"][0]["reports"] == 3
        assert counted == ["progress", "progress"]


def test_ranks_come_in_pages_and_a_trainer_asks_for_none(live: Callable[..., Any], counted: list[str]) -> None:
    with Client(live().url) as client:
        session = client.create_session("random", size=1000, batch_size=4, world_size=5).id
        for rank in range(5):
            client.report(session, [(0, losses())], rank=rank)
        counted.clear()
        light = client.session(session, ranks=0)
        assert (light.raw["ranks"], light.raw["next_rank"], counted) == ([], None, [])
        page = client.session(session, first_rank=1, ranks=3).raw
        assert ([one["rank"] for one in page["ranks"]], page["next_rank"]) == ([1, 2, 3], 4)
        page = client.session(session, first_rank=4, ranks=3).raw
        assert ([one["rank"] for one in page["ranks"]], page["next_rank"]) == ([4], None)


def test_who_waits_for_an_epoch_reads_its_reports_once(live: Callable[..., Any], counted: list[str]) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session = client.create_session("infobatch", size=64, batch_size=4, world_size=2, epochs=3).id
        for step in range(8):
            client.step(session, step, reports=[(step - 1, losses())] if step else [])
        client.report(session, [(7, losses())])
        for step in range(8):
            with pytest.raises(ServiceError, match="missing-reports") as refused:
                client.step(session, 8)
            assert refused.value.members["missing_count"] == 8 - step
            assert refused.value.members["missing"][0] == {"rank": 1, "step": step}
            client.report(session, [(step, losses())], rank=1)
        assert client.step(session, 8).epoch == 1
        assert counted.count("reported") == 2  # when it was asked for first, and when it opened


def test_missing_reports_are_those_that_are_not_stored(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    row = store.create("s", ANYONE, SessionSpec(method="random", size=10_000, batch_size=4, world_size=2), 10_000, {})
    assert row is not None
    record = EpochRecord(1, 100, RowSplit(8000, 4, 2))
    reported = [Report(rank, step, losses()) for step in range(100, 1100) for rank in range(2)]
    for end in (0, 100, 1999, 2000):
        store.add_reports([Write(row.key, 0, reported[:end])])
        missing = [(report.rank, report.step) for report in reported[end:]]
        assert [tuple(place) for place in missing_reports(store, row.key, record).tolist()] == missing
    store.close()
