"""A large job that resumes: a thousand ranks of one session at once, after the server was killed.

``python -m benchmarks.soak.resume``. The session has a million reports. Every rank asks what the Python sampler asks,
the generation and its next batch, while another session takes steps: how long until all ranks have their batch, how
long the other one waited for its slowest step, and how long a look at the large session takes, then and later.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.service import SERVE, free_port, http_post, in_process, start, wait
from curation.service.client import Client
from curation.service.client.requests import Requests
from curation.service.session.caller import ANYONE
from curation.service.session.session import Report
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.reports import Write

BATCH = 8


def fill(url: str, ranks: int, steps: int) -> None:
    """A session of ``ranks`` that reported ``steps`` steps each."""
    store, losses = Store(url), np.ones(BATCH, np.float32)
    spec = SessionSpec(method="random", size=ranks * BATCH * steps * 2, batch_size=BATCH, world_size=ranks, epochs=10)
    row = store.create("large", ANYONE, spec, int(spec.size or 0), {})
    assert row is not None
    for step in range(steps):
        store.add_reports([Write(row.key, 0, [Report(rank, step, losses) for rank in range(ranks)])])
    small = SessionSpec(method="random", size=10**6, batch_size=BATCH, epochs=1000)
    store.create("small", ANYONE, small, 10**6, {})
    store.close()


def resume(port: int, ranks: int, step: int, look: str) -> list[float]:
    """When each rank had its batch, in seconds, where all come at once; in a process of its own."""

    async def one(rank: int, begin: float) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask(request: bytes) -> bytes:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"refused: {head!r}")
            place = head.index(b"content-length:") + 15
            return await reader.readexactly(int(head[place : head.index(b"\r", place)]))

        answer = await ask(f"GET /v1/sessions/large{look} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        generation = json.loads(answer)["generation"]
        request = Requests().step("large", step=step, rank=rank, reports=(), generation=generation)
        await ask(http_post(request.path, request.content or b""))
        writer.close()
        return time.perf_counter() - begin

    async def all_of_them() -> list[float]:
        begin = time.perf_counter()
        return await asyncio.gather(*(one(rank, begin) for rank in range(ranks)))

    return sorted(asyncio.run(all_of_them()))


def watch(url: str, stop: threading.Event, slowest: list[float]) -> None:
    """Take steps of the other session until told to stop."""
    with Client(url) as client:
        step = 0
        while not stop.is_set():
            begin = time.perf_counter()
            client.step("small", step, reports=[(step - 1, np.ones(BATCH, np.float32))] if step else [])
            slowest.append(time.perf_counter() - begin)
            step += 1
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--look", default="?ranks=0", help="added to the session's address")
    arguments = parser.parse_args()
    ranks, steps = arguments.ranks, arguments.steps
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        store, url, log = f"sqlite:///{folder}/store.db", f"http://127.0.0.1:{port}", folder / "log"
        fill(store, ranks, steps)
        print(f"{ranks * steps:,} reports of {ranks:,} ranks: {(folder / 'store.db').stat().st_size / 2**20:.0f} MiB")
        server = start([sys.executable, "-c", SERVE, "--port", str(port), "--store", store], log)
        wait(f"{url}/readyz", server, log)
        stop, taken = threading.Event(), list[float]()
        watcher = threading.Thread(target=watch, args=(url, stop, taken))
        watcher.start()
        while len(taken) < 50:
            time.sleep(0.1)
        del taken[:10]  # the first of a server compiles
        quiet = len(taken)
        try:
            ended = in_process(resume, port, ranks, steps, arguments.look)
            print(f"all ranks have their batch after {ended[-1]:.1f} s, half of them after {ended[ranks // 2]:.1f} s")
            during = len(taken)
            with Client(url) as client:
                for look in ("the first look", "the second"):
                    begin = time.perf_counter()
                    client.session("large")
                    print(f"{look} at the session: {(time.perf_counter() - begin) * 1000:.0f} ms")
            stop.set()
            watcher.join()
            before, then = (max(some, default=0) * 1000 for some in (taken[:quiet], taken[quiet:during]))
            looked = max(taken[during:], default=0) * 1000
            print(f"slowest step of another session: before {before:.0f} ms, meanwhile {then:.0f} ms, {looked:.0f} ms")
        finally:
            stop.set()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
