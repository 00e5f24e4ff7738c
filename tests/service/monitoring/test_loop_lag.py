"""Lag of the event loop: work that keeps the loop shows in the histogram."""

import asyncio
import time

import pytest

from curation.service.monitoring import loop_lag
from curation.service.monitoring.metrics import Metrics


def test_work_that_keeps_the_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "SECONDS_BETWEEN", 0.01)
    metrics = Metrics()

    async def run() -> None:
        measuring = asyncio.create_task(loop_lag.measure_lag(metrics))
        await asyncio.sleep(0)
        time.sleep(0.2)
        await asyncio.sleep(0.05)
        measuring.cancel()

    asyncio.run(run())
    assert (metrics.registry.get_sample_value("curation_loop_lag_seconds_sum") or 0) > 0.1
