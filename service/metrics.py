"""What ``/metrics`` shows. Each app has a registry of its own, so that two in one process do not mix."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from curation.service.keeper import Entry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters and histograms of one app.

    Args:
        sessions: the sessions in memory, asked for at each scrape.
    """

    def __init__(self, sessions: Callable[[], Iterable[Entry]]) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "curation_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.open = Gauge("curation_requests_open", "Requests being answered", registry=self.registry)
        self.batches = Counter("curation_batches", "Batches handed out", registry=self.registry)
        self.rows = Counter("curation_rows", "Rows in those batches", registry=self.registry)
        self.reports = Counter("curation_reports", "Reports acknowledged, repeated ones too", registry=self.registry)
        self.refusals = Counter("curation_refusals", "Problem documents", ("kind",), registry=self.registry)
        self.registry.register(_Sessions(sessions))


class _Sessions(Collector):
    def __init__(self, sessions: Callable[[], Iterable[Entry]]) -> None:
        self._sessions = sessions

    def collect(self) -> Iterable[GaugeMetricFamily]:
        entries = list(self._sessions())
        yield GaugeMetricFamily("curation_sessions_in_memory", "Sessions in memory", value=len(entries))
        size = sum(entry.session.nbytes for entry in entries)
        yield GaugeMetricFamily("curation_resident_bytes", "Memory of their epochs", value=size)
        pool = GaugeMetricFamily("curation_pool_size", "Candidates of a session", labels=("session", "method"))
        kept = GaugeMetricFamily("curation_kept_share", "Share kept in its latest epoch", labels=("session", "method"))
        for entry in entries[-100:]:
            labels = (entry.row.id, entry.row.spec.method)
            pool.add_metric(labels, entry.row.size)
            records = entry.session.records
            kept.add_metric(labels, records[-1].layout.rows / entry.row.size if records else 1.0)
        yield pool
        yield kept
