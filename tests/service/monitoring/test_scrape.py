"""Scrape: labels of the server at every metric, so that those of several replicas do not mix."""

import asyncio

from prometheus_client import CollectorRegistry, Counter

from curation.service.monitoring.scrape import Scrape


def test_labels_stand_at_every_metric_beside_its_own() -> None:
    registry = CollectorRegistry()
    Counter("taken", "Taken", ("kind",), registry=registry).labels("a").inc()
    scrape = Scrape(registry, {"replica": "r1"})
    text = asyncio.run(scrape.text()).decode()
    scrape.close()
    assert 'taken_total{kind="a",replica="r1"} 1.0' in text
