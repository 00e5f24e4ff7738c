"""Metrics, as ``/metrics`` shows them. Each app has a registry of its own, so that two in one process do not mix."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from curation.service.manager.sessions import Entry

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
        self.open = 0
        self.batches = 0
        self.rows = 0
        self.reports = 0
        self._children: dict[tuple[str, str, int], Histogram] = {}
        self.registry.register(_Live(self, sessions))

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Take in one answered request."""
        child = self._children.get((route, method, status))
        if child is None:
            child = self._children[route, method, status] = self.seconds.labels(route, method, status)
        child.observe(seconds)


class _Live(Collector):
    """Numbers read at each scrape: plain integers cost a step less than locked counters, and one thread writes them."""

    def __init__(self, metrics: Metrics, sessions: Callable[[], Iterable[Entry]]) -> None:
        self._metrics = metrics
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("curation_requests_open", "Requests being answered", value=self._metrics.open)
        yield CounterMetricFamily("curation_batches", "Batches handed out", value=self._metrics.batches)
        yield CounterMetricFamily("curation_rows", "Rows in those batches", value=self._metrics.rows)
        yield CounterMetricFamily(
            "curation_reports", "Reports acknowledged, repeated ones too", value=self._metrics.reports
        )
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
