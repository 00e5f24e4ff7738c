"""The service under fire: SIGKILL at random moments, a hundred times, with eight client processes.

``python -m benchmarks.soak.service``. Two sessions run at once, four ranks each: a plan, of which every row of every
epoch must be handed out exactly once, and InfoBatch, whose batches, weights and last state must equal those of a run
in one process that nothing disturbed. Clients send some requests twice and some reports again, late and out of order.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
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


def loss_of(indices: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    """Depends on the candidate and the step, so that a report credited wrongly shows."""
    return (((indices * 2654435761 + step * 40503) % 1009) / 1009).astype(np.float32)


def train(url: str, session: str, rank: int, pause: float, folder: Path) -> None:
    """One rank, to the session's end; what it was given goes to a file. It hurries once nobody kills any more."""
    dice = random.Random(f"{session} {rank}")
    given: list[Any] = []
    with Client(url, patience=600) as client:
        step, reports, old = 0, [], []
        while True:
            batch = client.step(session, step, rank=rank, reports=reports)
            if dice.random() < 0.1:
                again = client.step(session, step, rank=rank, reports=list(reversed(reports + old[-3:])))
                assert np.array_equal(again.indices, batch.indices), "an answer changed"
                assert np.array_equal(again.weights, batch.weights), "an answer changed"
            given.append((batch.epoch, batch.step, batch.indices, batch.weights))
            old += reports
            reports = [(step, loss_of(batch.indices, step))]
            if batch.end_of_epoch:
                client.report(session, reports, rank=rank)
            if batch.end_of_session:
                break
            step += 1
            if pause and not (folder / CALM).exists():
                time.sleep(dice.expovariate(1 / pause))
    table = pa.table(
        {name: [one[i] for one in given] for i, name in enumerate(("epoch", "step", "indices", "weights"))}
    )
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between a rank's steps")
    arguments = parser.parse_args()
    size, epochs = arguments.size, arguments.epochs
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        url, log = f"http://127.0.0.1:{port}", folder / "log"
        command = [sys.executable, "-c", SERVE, "--port", str(port), "--store", f"sqlite:///{folder}/store.db"]
        server: subprocess.Popen[bytes] = start(command, log)
        wait(f"{url}/readyz", server, log)
        with Client(url) as client:
            options: dict[str, Any] = {
                "size": size,
                "batch_size": BATCH,
                "epochs": epochs,
                "world_size": RANKS,
                "seed": 7,
            }
            plan = BatchPlan.of_size(np.random.default_rng(3).permutation(size), BATCH)
            client.create_session("plan", id="plan", plan=plan, **options)
            client.create_session("infobatch", id="infobatch", **options)
        context = get_context("spawn")
        clients = [
            context.Process(target=train, args=(url, session, rank, arguments.pause, folder))
            for session in ("plan", "infobatch")
            for rank in range(RANKS)
        ]
        begin = time.perf_counter()
        for one in clients:
            one.start()
        dice, kills, starts = random.Random(1), 0, []
        try:
            while kills < arguments.kills and any(one.is_alive() for one in clients):
                time.sleep(min(dice.expovariate(1), 4))
                server.kill()
                server.wait()
                kills += 1
                server = start(command, log)
                if dice.random() < 0.2:
                    time.sleep(dice.uniform(0, 1))  # killed while it starts
                    continue
                starts.append(wait(f"{url}/readyz", server, log))
            if kills < arguments.kills:
                raise SystemExit(f"the clients were done after {kills} kills: give a larger --size or --pause")
            (folder / CALM).touch()
            for one in clients:
                one.join()
        finally:
            for one in clients:
                one.terminate()
        seconds = time.perf_counter() - begin
        if any(one.exitcode for one in clients):
            raise SystemExit(f"a client failed: exit codes {[one.exitcode for one in clients]}")
        with Client(url) as client:
            state = client.checkpoint("infobatch")
        server.terminate()
        server.wait()
        plan_batches, info_batches = (batches_of(folder, session) for session in ("plan", "infobatch"))
        check_plan(plan_batches, size, epochs)
        check_infobatch(info_batches, size, epochs, state)
        restart = f"restarts took {np.median(starts):.2f} s"
        print(f"{kills} kills in {seconds:.0f} s under {len(clients)} client processes; {restart}")
        print(f"plan: {epochs} epochs of {size:,} rows, each row once in each: {len(plan_batches):,} batches")
        print(f"infobatch: {len(info_batches):,} batches, weights and the last state as undisturbed")


if __name__ == "__main__":
    main()
