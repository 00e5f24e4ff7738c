"""Lag of the event loop: how long requests wait because another one keeps the loop busy."""

import asyncio

from curation.service.monitoring.metrics import Metrics

SECONDS_BETWEEN = 0.5


async def measure_lag(metrics: Metrics) -> None:
    """Take in how late the loop comes to a timer, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SECONDS_BETWEEN
        await asyncio.sleep(SECONDS_BETWEEN)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))
