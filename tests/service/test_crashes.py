"""A server killed with SIGKILL at random moments: nothing is lost and nothing repeats.

``benchmarks/soak/service.py`` does the same a hundred times with eight client processes, of one server or, with
``--postgres``, of two replicas.
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selectors.infobatch import InfoBatch
from curation.selectors.jest import JEST
from curation.service.client import ChosenBatch, Client, ServiceError, StepBatch

RANKS = 2
PLAN = {"size": 2400, "batch_size": 16, "epochs": 2, "seed": 1}
INFOBATCH = {"size": 1600, "batch_size": 16, "epochs": 4, "seed": 9}
SUPER = {"size": 800, "batch_size": 20, "epochs": 2, "seed": 3, "parameters": {"chunks": 4}}
SIDES = np.random.default_rng(7).normal(size=(4, 800, 4)).astype(np.float32)
KILLS = (50, 100), (200, 400)
"""Between how many batches and how many all ranks together have, of the 600 and more, when the server is killed."""

Seen = dict[tuple[int, int], StepBatch]
Chosen = dict[tuple[int, int], ChosenBatch]


def loss_of(indices: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    """A loss that depends on the candidate and the step, so that a report credited wrongly shows."""
    return (((indices * 2654435761 + step * 40503) % 1009) / 1009).astype(np.float32)


def embeddings(indices: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    a, b, c, d = SIDES[:, indices]
    return Pair(a, b, 5.0, -5.0), Pair(c, d, 5.0, -5.0)


def train(url: str, session: str, rank: int, seen: Seen, chosen: Chosen | None) -> None:
    """One rank: every step in order, each with the report of the step before; some requests are sent twice."""
    dice = random.Random(rank)
    reports: list[tuple[int, npt.NDArray[np.float32]]] = []
    with Client(url, patience=60) as client:
        step = 0
        while True:
            batch = client.step(session, step, rank=rank, reports=reports)
            if dice.random() < 0.2:
                again = client.step(session, step, rank=rank, reports=reports)
                assert np.array_equal(again.indices, batch.indices)
            seen[rank, step], trained = batch, batch.indices
            if chosen is not None:
                chosen[rank, step] = client.choose(session, step, *embeddings(batch.indices), rank=rank)
                trained = chosen[rank, step].indices
                if dice.random() < 0.2:
                    assert np.array_equal(client.choose(session, step, rank=rank).indices, trained)
            reports = [(step, loss_of(trained, step))]
            if batch.end_of_epoch:
                client.report(session, reports, rank=rank)
            if batch.end_of_session:
                return
            step += 1


def test_what_trainers_see_is_what_they_see_of_an_undisturbed_server(serve: Callable[..., Any]) -> None:
    server = serve()
    order = np.random.default_rng(5).permutation(PLAN["size"])
    with Client(server.url) as client:
        ids = [
            client.create_session("plan", world_size=RANKS, plan=BatchPlan.of_size(order, 16), **PLAN).id,
            client.create_session("infobatch", world_size=RANKS, **INFOBATCH).id,
            client.create_session("jest", world_size=RANKS, **SUPER).id,
        ]
    seen: list[Seen] = [{}, {}, {}]
    chosen: Chosen = {}
    errors: list[Exception] = []

    def guarded(*arguments: Any) -> None:
        try:
            train(server.url, *arguments)
        except (ServiceError, AssertionError) as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(id, rank, seen[i], chosen if i == 2 else None))
        for i, id in enumerate(ids)
        for rank in range(RANKS)
    ]
    for thread in threads:
        thread.start()
    dice = random.Random(0)
    for fewest, most in KILLS:
        moment = dice.randint(fewest, most)
        while sum(map(len, seen)) < moment:
            assert not errors
            time.sleep(0.001)
        assert any(thread.is_alive() for thread in threads), "the clients finished before the last kill"
        server.kill()
        server.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    check_plan(seen[0])
    check_infobatch(seen[1])
    check_jest(seen[2], chosen)


def check_plan(seen: Seen) -> None:
    for epoch in range(PLAN["epochs"]):
        given = np.concatenate([batch.indices for batch in seen.values() if batch.epoch == epoch])
        assert np.array_equal(np.sort(given), np.arange(PLAN["size"]))


def check_infobatch(seen: Seen, options: dict[str, int] = INFOBATCH) -> None:
    size, epochs = options["size"], options["epochs"]
    info = InfoBatch(size=size, epochs=epochs, seed=9)
    step = 0
    for epoch in range(epochs):
        order, place = info.epoch(epoch), 0
        weight_of = np.zeros(size, np.float32)
        weight_of[order.indices] = order.weights
        losses: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        while place < len(order):
            batches = [seen[rank, step] for rank in range(RANKS)]
            given = np.concatenate([batch.indices for batch in batches])
            assert np.array_equal(given, order.indices[place : place + len(given)])
            assert np.array_equal(np.concatenate([batch.weights for batch in batches]), weight_of[given])
            losses.append((given, loss_of(given, step)))
            place, step = place + len(given), step + 1
        for indices, values in losses:
            info.update(indices, values)
    assert step * RANKS == len(seen)
    assert 0 < sum(len(batch.indices) for batch in seen.values()) < epochs * size


def check_jest(seen: Seen, chosen: Chosen) -> None:
    steps = len(seen) // RANKS
    given: dict[int, list[int]] = {}
    for step in range(steps):
        whole = np.concatenate([seen[rank, step].indices for rank in range(RANKS)])
        epoch = int(seen[0, step].epoch or 0)
        given.setdefault(epoch, []).extend(whole.tolist())
        generator = np.random.default_rng((3, epoch, len(given[epoch])))
        expected = whole[JEST(chunks=4).select(*embeddings(whole), generator=generator).indices]
        assert np.array_equal(np.concatenate([chosen[rank, step].indices for rank in range(RANKS)]), expected)
    assert [sorted(rows) for rows in given.values()] == [list(range(SUPER["size"]))] * SUPER["epochs"]


REWOUND = {"size": 1200, "batch_size": 16, "epochs": 3, "seed": 9}
STOPS = (20, 45, 70)
"""Steps at which all ranks stop, go back some steps by a rewind, and go on."""


class Ranks:
    """Ranks that train on a session through replicas, each request by the next one, and rewind it together."""

    def __init__(self, urls: list[str], session: str) -> None:
        self.urls, self.session = urls, session
        self.seen: Seen = {}
        self.errors: list[Exception] = []
        self.barrier = threading.Barrier(RANKS)
        self.begin = 0, 0
        self.threads = [threading.Thread(target=self._guarded, args=(rank,)) for rank in range(RANKS)]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(240)
        assert not self.errors

    def _guarded(self, rank: int) -> None:
        try:
            with ExitStack() as stack:
                self._train(rank, cycle([stack.enter_context(Client(url, patience=60)) for url in self.urls]))
        except Exception as error:
            self.errors.append(error)
            self.barrier.abort()

    def _train(self, rank: int, replicas: "cycle[Client]") -> None:
        step, generation = 0, next(replicas).session(self.session).generation
        for stop in (*STOPS, 10**9):
            reports: list[tuple[int, npt.NDArray[np.float32]]] = []
            while step < stop:
                arguments = {"rank": rank, "reports": reports, "generation": generation}
                batch = next(replicas).step(self.session, step, **arguments)
                self.seen[rank, step] = batch
                reports = [(step, loss_of(batch.indices, step))]
                if batch.end_of_epoch:
                    next(replicas).report(self.session, reports, rank=rank, generation=generation)
                if batch.end_of_session:
                    return
                step += 1
            self.barrier.wait(120)
            if rank == 0:
                back = step - 7
                self.begin = back, next(replicas).rewind(self.session, back).generation
            self.barrier.wait(120)
            step, generation = self.begin


def test_replicas_that_die_and_are_rewound_refuse_nothing_that_is_right(
    serve: Callable[..., Any], database: Any
) -> None:
    servers = [serve(database.get_uri(), wait=False) for _ in range(2)]
    for server in servers:
        server.wait()
    with Client(servers[0].url) as client:
        session = client.create_session("infobatch", world_size=RANKS, **REWOUND).id
    ranks = Ranks([server.url for server in servers], session)
    dice = random.Random(1)
    for server in servers:  # the second dies while the first starts
        time.sleep(dice.uniform(0.05, 0.4))
        assert ranks.threads[0].is_alive(), "the ranks finished before the last kill"
        server.kill()
        server.start(wait=False)
    ranks.join()
    check_infobatch(ranks.seen, REWOUND)
