"""Collector of what is read at each scrape: sessions in memory, the group commit, the store's files, the process."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from curation.service.manager.memory.entry import Entry
from curation.service.manager.sessions import SessionManager
from curation.service.monitoring.metrics import Metrics
from curation.service.monitoring.standing import Statuses
from curation.service.session.status import Status
from curation.service.store import Store


class StateCollector(Collector):
    """What a server holds at the moment of a scrape. It may be asked in a thread beside the event loop.

    Args:
        metrics: whose plain counters it shows too.
        manager: the sessions of this server.
        store: where they are kept.
        stalled_seconds: how long nobody asks until a session is stalled.
    """

    def __init__(self, metrics: Metrics, manager: SessionManager, store: Store, stalled_seconds: float) -> None:
        self._metrics, self._manager, self._store = metrics, manager, store
        self._statuses = Statuses(manager, stalled_seconds)
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("curation_build_info", "Always 1", labels=("version",))
        build.add_metric((release(),), 1)
        yield build
        yield from self._counts()
        entries = self._manager.in_memory
        yield from _totals(entries)
        yield from self._sessions(entries)
        yield from _files(self._store)
        yield from self._process.collect()

    def _counts(self) -> Iterable[Metric]:
        metrics = self._metrics
        yield GaugeMetricFamily("curation_requests_open", "Requests being answered", value=metrics.open)
        yield CounterMetricFamily("curation_batches", "Batches handed out", value=metrics.batches)
        yield CounterMetricFamily("curation_rows", "Rows in those batches", value=metrics.rows)
        yield CounterMetricFamily("curation_reports", "Reports acknowledged, repeated ones too", value=metrics.reports)
        yield CounterMetricFamily(
            "curation_committed_reports", "Reports committed, repeated ones too", value=metrics.committed_reports
        )
        yield CounterMetricFamily(
            "curation_committed_bytes", "Bytes of the losses in them", value=metrics.committed_bytes
        )
        yield CounterMetricFamily(
            "curation_evictions", "Sessions whose epochs made room for others", value=self._manager.residency.evictions
        )
        yield CounterMetricFamily(
            "curation_residency_refusals",
            "Requests told to wait because the sessions in use take all of resident_bytes",
            value=self._manager.residency.refusals,
        )
        limit = self._manager.residency.max_bytes
        yield GaugeMetricFamily(
            "curation_resident_bytes_limit", "What the epochs may take (resident_bytes)", value=limit
        )
        waiting = self._manager.group_commit.waiting
        yield GaugeMetricFamily("curation_commit_queue", "Requests that wait for a commit to begin", value=waiting)

    def _sessions(self, entries: Sequence[Entry]) -> Iterable[Metric]:
        counts = Counter(self._statuses.of(entries))
        text = "Sessions in memory, by their status: see docs/dashboard.md"
        family = GaugeMetricFamily("curation_sessions", text, labels=("state",))
        for status in get_args(Status):
            family.add_metric((status,), counts[status])
        yield family


def release() -> str:
    """The version that is installed; "0" where it runs from a checkout."""
    try:
        return version("curation")
    except PackageNotFoundError:
        return "0"


def _totals(entries: Sequence[Entry]) -> Iterable[Metric]:
    yield GaugeMetricFamily("curation_sessions_in_memory", "Sessions in memory", value=len(entries))
    size = sum(entry.session.nbytes for entry in entries)
    yield GaugeMetricFamily("curation_resident_bytes", "Memory of their epochs", value=size)


def _files(store: Store) -> Iterable[Metric]:
    """Sizes of a SQLite store; a PostgreSQL server has an exporter of its own."""
    if store.shared:
        return
    path = Path(str(store.url.database))
    sizes = GaugeMetricFamily("curation_store_bytes", "Size of the store's files", labels=("file",))
    for name, file in (("database", path), ("log", path.with_name(f"{path.name}-wal"))):
        try:
            sizes.add_metric((name,), file.stat().st_size)
        except OSError:
            continue
    yield sizes
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return
    free = disk.f_bavail * disk.f_frsize
    yield GaugeMetricFamily("curation_store_free_bytes", "Bytes free on the store's file system", value=free)
