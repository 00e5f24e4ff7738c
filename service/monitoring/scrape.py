"""Scrape of the metrics: Prometheus's text, made in a thread of its own, because files are looked at for it."""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric


class Scrape:
    """What ``/metrics`` answers.

    Args:
        registry: the metrics.
        labels: stand at each of them.
    """

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._labels = dict(labels)
        self._thread = ThreadPoolExecutor(1, "curation-scrape")

    async def text(self) -> bytes:
        """All metrics as they are now."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, generate_latest, self)

    def collect(self) -> Iterable[Metric]:
        """The registry's metrics, with the labels."""
        for metric in self._registry.collect():
            if self._labels:
                metric.samples = [
                    sample._replace(labels={**self._labels, **sample.labels}) for sample in metric.samples
                ]
            yield metric

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)
