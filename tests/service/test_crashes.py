"""A server killed with SIGKILL at random moments: nothing is lost and nothing repeats.

``benchmarks/soak.py`` does the same a hundred times with eight client processes.
"""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.selectors.infobatch import InfoBatch
from curation.service.client import Client, ServiceError, StepBatch

Seen = dict[tuple[int, int], StepBatch]


def loss_of(indices: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    """A loss that depends on the candidate and the step, so that a report credited wrongly shows."""
    return (((indices * 2654435761 + step * 40503) % 1009) / 1009).astype(np.float32)


def train(url: str, session: str, rank: int, seen: Seen, errors: list[Exception]) -> None:
    """One rank: every step in order, each with the report of the step before; some requests are sent twice."""
    dice = random.Random(rank)
    reports: list[tuple[int, npt.NDArray[np.float32]]] = []
    try:
        with Client(url, patience=60) as client:
            step = 0
            while True:
                batch = client.step(session, step, rank=rank, reports=reports)
                if dice.random() < 0.2:
                    again = client.step(session, step, rank=rank, reports=reports)
                    assert np.array_equal(again.indices, batch.indices)
                seen[rank, step] = batch
                reports = [(step, loss_of(batch.indices, step))]
                if batch.end_of_session:
                    client.report(session, reports, rank=rank)
                    return
                if batch.end_of_epoch:
                    client.report(session, reports, rank=rank)
                step += 1
                time.sleep(0.002)
    except (ServiceError, AssertionError) as error:
        errors.append(error)


def run_under_fire(server: Any, session: str, ranks: int, kills: int) -> Seen:
    seen: Seen = {}
    errors: list[Exception] = []
    threads = [threading.Thread(target=train, args=(server.url, session, rank, seen, errors)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    dice = random.Random(0)
    killed = 0
    while killed < kills and any(thread.is_alive() for thread in threads):
        time.sleep(dice.uniform(0.05, 0.4))
        server.kill()
        server.start()
        killed += 1
    for thread in threads:
        thread.join(120)
    assert not errors
    assert killed == kills, "the clients finished before the last kill: make the session longer"
    return seen


def test_a_plan_is_handed_out_exactly_once(serve: Callable[..., Any]) -> None:
    rows, ranks, epochs = 6000, 2, 2
    order = np.random.default_rng(5).permutation(rows)
    server = serve()
    with Client(server.url) as client:
        plan = BatchPlan.of_size(order, 16)
        session = client.create_session(
            "plan", size=rows, batch_size=16, epochs=epochs, world_size=ranks, seed=1, plan=plan
        ).id
    seen = run_under_fire(server, session, ranks, kills=3)
    for epoch in range(epochs):
        given = np.concatenate([batch.indices for batch in seen.values() if batch.epoch == epoch])
        assert np.array_equal(np.sort(given), np.arange(rows))


def test_infobatch_ends_as_an_undisturbed_run(serve: Callable[..., Any], tmp_path: Path) -> None:
    size, ranks, epochs, batch_size = 3000, 2, 4, 16
    server = serve()
    with Client(server.url) as client:
        session = client.create_session(
            "infobatch", size=size, batch_size=batch_size, epochs=epochs, world_size=ranks, seed=9
        ).id
    seen = run_under_fire(server, session, ranks, kills=3)

    info = InfoBatch(size=size, epochs=epochs, seed=9)
    step = 0
    for epoch in range(epochs):
        order, place = info.epoch(epoch), 0
        weight_of = np.zeros(size, np.float32)
        weight_of[order.indices] = order.weights
        losses: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        while place < len(order):
            batches = [seen[rank, step] for rank in range(ranks)]
            given = np.concatenate([batch.indices for batch in batches])
            assert np.array_equal(given, order.indices[place : place + len(given)])
            assert np.array_equal(np.concatenate([batch.weights for batch in batches]), weight_of[given])
            losses.append((given, loss_of(given, step)))
            place, step = place + len(given), step + 1
        for indices, values in losses:
            info.update(indices, values)
    assert step * ranks == len(seen)
    assert 0 < sum(len(batch.indices) for batch in seen.values()) < epochs * size
