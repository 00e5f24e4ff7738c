"""Collector: what an operator sees of sessions, commits, files and the process in a scrape."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from curation.service.client import Client, ServiceError
from curation.service.manager.memory import residency


def scraped(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_tells_who_is_late_and_what_commits_cost(live: Callable[..., Any]) -> None:
    url = live().url
    with Client(url, patience=0) as client:
        spec: dict[str, Any] = {"size": 40, "batch_size": 5, "epochs": 2, "world_size": 2}
        session = client.create_session("infobatch", **spec, id="late").id
        for step in range(4):
            client.report(session, [(step, np.ones(5))], rank=0)
            client.step(session, min(step + 1, 3), rank=0)
        client.step(session, 1, rank=1)
        with pytest.raises(ServiceError, match="missing-reports"):
            client.step(session, 4, rank=0)
    found = scraped(url)

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    of_session = {"session": "late", "method": "infobatch"}
    assert value("curation_rank_gap_steps", **of_session) == 2
    assert value("curation_slowest_rank", **of_session) == 1
    assert value("curation_ranks_waiting", **of_session) == 1
    assert value("curation_sessions", state="waiting") == 1
    assert value("curation_refusals_total", kind="missing-reports") == 1
    assert value("curation_commit_seconds_count") == 4
    assert value("curation_commit_queue") == 0
    assert value("curation_committed_reports_total") == 4
    assert value("curation_committed_bytes_total") == 4 * 5 * 4
    assert value("curation_epoch_seconds_count", work="open") == 1
    assert value("curation_evictions_total") == 0
    assert value("curation_store_bytes", file="database") > 0
    assert value("curation_store_free_bytes") > 0
    assert value("process_resident_memory_bytes") > 1 << 20
    assert value("process_open_fds") > 3
    assert found["curation_loop_lag_seconds_bucket", frozenset({("le", "+Inf")})] >= 0
    assert any(name == "curation_build_info" for name, _ in found)


def test_a_session_runs_and_is_finished_when_every_rank_had_its_last_step(live: Callable[..., Any]) -> None:
    url = live().url
    with Client(url, patience=0) as client:
        session = client.create_session("random", size=20, batch_size=5, world_size=2).id
        client.step(session, 1, rank=0)
        assert scraped(url)["curation_sessions", frozenset({("state", "running")})] == 1
        client.step(session, 1, rank=1)
        assert scraped(url)["curation_sessions", frozenset({("state", "finished")})] == 1


def test_sessions_pushed_out_of_memory_are_counted(live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE", "SHARE"):  # what an epoch in memory is kept for
        monkeypatch.setattr(residency, name, 0)
    url = live(resident_bytes=9_500).url
    with Client(url, patience=0) as client:
        for name in ("a", "b"):
            client.create_session("infobatch", size=1000, batch_size=10, epochs=2, id=name)
        for name in ("a", "b", "a"):
            client.step(name, 0)
    found = scraped(url)
    assert found["curation_evictions_total", frozenset()] == 2
    assert found["curation_epoch_seconds_count", frozenset({("work", "again")})] >= 1
