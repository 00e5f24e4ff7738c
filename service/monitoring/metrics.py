"""Metrics that the parts of a server write as they work. Each app has a registry of its own, so that two in one process
do not mix; what is read at a scrape instead is in :mod:`curation.service.monitoring.collector`."""

from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_AT_ONCE = 512
_LONG_SECONDS = (0.01, 0.025, 0.1, 0.25, 1, 2.5, 10, 25, 100, 250)


class Metrics:
    """Counters and histograms of one app.

    Plain integers cost a step less than locked counters; one thread writes each.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answered: deque[tuple[str, str, int, float]] = deque()
        self.registry.register(_First(self))
        self.seconds = Histogram(
            "curation_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "curation_commit_seconds",
            "Time to commit the reports of a group of requests",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.epoch_seconds = Histogram(
            "curation_epoch_seconds",
            "Time to open an epoch, or to compute again one that was evicted",
            ("work",),
            buckets=_LONG_SECONDS,
            registry=self.registry,
        )
        self.loop_lag = Histogram(
            "curation_loop_lag_seconds",
            "How late the event loop came to a timer, looked at twice a second",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "curation_refusals", "Requests answered with a problem document", ("kind",), registry=self.registry
        )
        self.failed_logins = Counter(
            "curation_failed_logins", "Requests whose token is not valid", registry=self.registry
        )
        self.opened = self.epoch_seconds.labels("open")
        self.computed_again = self.epoch_seconds.labels("again")
        self.open = 0
        self.batches = 0
        self.rows = 0
        self.reports = 0
        self.committed_reports = 0
        self.committed_bytes = 0
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Take in one answered request. They gather: counted together they cost less."""
        self._answered.append((route, method, status, seconds))
        if len(self._answered) >= _AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Count the requests that have gathered. Thread-safe."""
        while self._answered:
            try:
                route, method, status, seconds = self._answered.popleft()
            except IndexError:  # another thread took it
                return
            child = self._children.get((route, method, status))
            if child is None:
                child = self._children[route, method, status] = self.seconds.labels(route, method, status)
            child.observe(seconds)


class _First(Collector):
    """Stands first in a registry, and has all counted before the others are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        self._metrics.settle()
        return ()
