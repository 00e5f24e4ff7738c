"""Scrape of the metrics: Prometheus's text, made in a thread of its own, because files are looked at for it."""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class Scrape:
    """What ``/metrics`` answers.

    Args:
        registry: the metrics that everybody may see.
        labels: stand at each of them.
    """

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._labels = dict(labels)
        self._thread = ThreadPoolExecutor(1, "curation-scrape")

    async def text(self, *named: Collector) -> bytes:
        """The server's metrics as they are now, and those that only this reader may see."""
        shown = _Labelled((self._registry, *named), self._labels)
        return await asyncio.get_running_loop().run_in_executor(self._thread, generate_latest, shown)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)


class _Labelled(NamedTuple):
    """The metrics of several collectors, with further labels at each."""

    parts: tuple[Collector, ...]
    labels: Mapping[str, str]

    def collect(self) -> Iterable[Metric]:
        for metric in chain.from_iterable(part.collect() for part in self.parts):
            if self.labels:
                metric.samples = [sample._replace(labels={**self.labels, **sample.labels}) for sample in metric.samples]
            yield metric
