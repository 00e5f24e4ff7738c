"""A large session that goes to its next epochs, is rewound and removed, beside a small one that takes steps.

``python -m benchmarks.soak.epochs --size 100000000``. Prints how long each takes, the slowest durable step of the other
session meanwhile, the server's peak memory, and the sizes of the file and its log.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.service import SERVE, free_port, start, wait
from benchmarks.soak.resume import BATCH, watch
from curation.service.client import Client

ROWS = 1 << 16
ENVIRONMENT = {"CURATION_REQUEST_SECONDS": "600"}


def peak(pid: int) -> float:
    """The most memory that a process had, in GiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10**7)
    parser.add_argument("--epochs", type=int, default=2, help="changes of the epoch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        path, url, log = folder / "store.db", f"http://127.0.0.1:{port}", folder / "log"
        command = [sys.executable, "-c", SERVE, "--port", str(port), "--store", f"sqlite:///{path}"]
        server = start(command, log, **ENVIRONMENT)
        wait(f"{url}/readyz", server, log)
        stop, taken = threading.Event(), list[float]()

        @contextmanager
        def timed(what: str) -> Iterator[None]:
            first, begin = len(taken), time.perf_counter()
            yield
            seconds = time.perf_counter() - begin
            time.sleep(0.2)
            files = (path.stat().st_size / 2**20, Path(f"{path}-wal").stat().st_size / 2**20)
            print(
                f"{what:<28} {seconds:>6.1f} s, others' slowest step {max(taken[first:], default=0) * 1000:>5.0f} ms, "
                f"peak {peak(server.pid):.2f} GiB, file {files[0]:.0f} MiB, log {files[1]:.0f} MiB",
                flush=True,
            )

        try:
            with Client(url, timeout=600, patience=1200) as client:
                client.create_session("random", id="small", size=10**6, batch_size=BATCH, epochs=1000)
                watcher = threading.Thread(target=watch, args=(url, stop, taken))
                watcher.start()
                while len(taken) < 10:
                    time.sleep(0.1)
                options = {"size": arguments.size, "batch_size": ROWS, "epochs": arguments.epochs + 2, "seed": 1}
                with timed("nothing"):
                    time.sleep(2)
                with timed("opened"):
                    session = client.create_session("infobatch", **options).id
                    batch = client.step(session, 0)
                rng, step = np.random.default_rng(0), 0
                for epoch in range(arguments.epochs):
                    with timed(f"epoch {epoch} taken"):
                        while not batch.end_of_epoch:
                            reports = [(step, rng.random(len(batch.indices), np.float32))]
                            step += 1
                            batch = client.step(session, step, reports=reports)
                        client.report(session, [(step, rng.random(len(batch.indices), np.float32))])
                    step += 1
                    with timed(f"change to epoch {epoch + 1}"):
                        batch = client.step(session, step)
                with timed("rewound to step 0"):
                    client.rewind(session, 0)
                with timed("removed"):
                    client.delete(session)
                    time.sleep(20)
        finally:
            stop.set()
            watcher.join()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
