"""Fifty trainers of twenty ranks: whether a server's memory stays flat, and its answers quick, for half an hour.

``python -m benchmarks.soak.fleet``. Each rank has a connection of its own, takes a step about every ``--pause`` seconds
and reports the one before; half of the sessions are InfoBatch, half random. A session that ends is deleted and made
anew. A line a minute: steps taken, their latency, the server's memory, its threads and files.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.service import SERVE, free_port, http_post, start, wait
from curation.service.client import AsyncClient
from curation.service.client.requests import Requests

BATCH = 64
STEPS = 40
"""Steps of an epoch."""
EPOCHS = 4


@dataclass
class Tally:
    """What happened since the last line."""

    seconds: list[float] = field(default_factory=list)
    waits: int = 0
    reconnects: int = 0
    refused: list[str] = field(default_factory=list)


class Rank:
    """A connection that is opened again where the server closed it."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port, self.tally = port, tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; sent again where the connection is gone, which is safe."""
        while True:
            try:
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._streams
                writer.write(http_post(path, body))
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                place = head.index(b"content-length:") + 15
                return int(head[9:12]), await reader.readexactly(int(head[place : head.index(b"\r", place)]))
            except (ConnectionError, asyncio.IncompleteReadError):
                self.tally.reconnects += 1
                self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def train(session: str, generation: int, rank: int, pause: float, connection: Rank) -> None:
    """One rank, to the session's end."""
    dice, asking, step, reports = random.Random(f"{session} {rank}"), Requests(wait=25), 0, []
    while True:
        request = asking.step(session, step=step, rank=rank, reports=reports, generation=generation)
        begin = time.perf_counter()
        status, answer = await connection.post(request.path, request.content or b"")
        if status == 409 and b"missing-reports" in answer:
            connection.tally.waits += 1
            continue
        if status != 200:
            connection.tally.refused.append(answer.decode(errors="replace")[:300])
            await asyncio.sleep(1)
            continue
        rows = pa.ipc.open_stream(answer).read_all()
        facts = rows.schema.metadata
        if reports:  # the first step of an epoch may have waited for other ranks
            connection.tally.seconds.append(time.perf_counter() - begin)
        reports = [(step, np.full(len(rows), 1 / (step + 1), np.float32))]
        if facts[b"end_of_epoch"] == b"1":
            last = asking.step(session, step=None, rank=rank, reports=reports, generation=generation)
            await connection.post(last.path, last.content or b"")
            reports = []
        if facts[b"end_of_session"] == b"1":
            return
        step += 1
        await asyncio.sleep(dice.uniform(0.5, 1.5) * pause)


async def trainer(number: int, url: str, port: int, ranks: int, pause: float, tally: Tally, end: float) -> None:
    """One session after another."""
    method, made = ("infobatch", "random")[number % 2], 0
    async with AsyncClient(url) as client:
        connections = [Rank(port, tally) for _ in range(ranks)]
        while time.monotonic() < end:
            made += 1
            size = BATCH * ranks * STEPS
            shape = {"size": size, "world_size": ranks, "epochs": EPOCHS, "batch_size": BATCH}
            info = await client.create_session(method, id=f"trainer-{number}-{made}", **shape)
            ended = [train(info.id, info.generation, rank, pause, one) for rank, one in enumerate(connections)]
            await asyncio.gather(*ended)
            await client.delete(info.id)


async def watch(server: psutil.Process, tally: Tally, end: float) -> list[float]:
    """A line a minute; the memory at each, in MiB."""
    print("minute  steps/s  p50 ms  p99 ms   worst  RSS MiB  threads  files")
    memory: list[float] = []
    while time.monotonic() < end:
        await asyncio.sleep(min(60.0, max(1.0, end - time.monotonic())))
        seconds, tally.seconds = np.array(tally.seconds or [0.0]) * 1000, []
        memory.append(server.memory_info().rss / 2**20)
        p50, p99 = np.quantile(seconds, [0.5, 0.99])
        latency = f"{p50:>7.1f} {p99:>7.1f} {seconds.max():>7.0f}"
        process = f"{memory[-1]:>8.1f} {server.num_threads():>8} {server.num_fds():>6}"
        print(f"{len(memory):>6} {len(seconds) / 60:>8.0f} {latency} {process}", flush=True)
    return memory


async def run(arguments: argparse.Namespace, port: int, pid: int) -> None:
    url, end, tally = f"http://127.0.0.1:{port}", time.monotonic() + 60 * arguments.minutes, Tally()
    facts = (url, port, arguments.ranks, arguments.pause, tally, end)
    fleet = [asyncio.create_task(trainer(number, *facts)) for number in range(arguments.sessions)]
    memory = await watch(psutil.Process(pid), tally, end)
    for task in fleet:
        task.cancel()
    ended = await asyncio.gather(*fleet, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    third = max(1, len(memory) // 3)
    before, last = (float(np.median(some)) for some in (memory[-2 * third : -third] or memory, memory[-third:]))
    print(f"memory: {before:.1f} MiB in the second third, {last:.1f} MiB in the last: {last / before - 1:+.1%}")
    print(f"waited again: {tally.waits}, connected again: {tally.reconnects}, refused: {len(tally.refused)}")
    for text in sorted(set(tally.refused))[:5]:
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=20)
    parser.add_argument("--pause", type=float, default=5, help="mean seconds between a rank's steps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        store, log = f"sqlite:///{folder}/store.db", folder / "log"
        server = start(
            [sys.executable, "-c", SERVE, "--port", str(port), "--store", store], log, CURATION_ACCESS_LOG="errors"
        )
        try:
            wait(f"http://127.0.0.1:{port}/readyz", server, log)
            asyncio.run(run(arguments, port, server.pid))
        finally:
            server.terminate()
            server.wait()
            errors = [line for line in log.read_text().splitlines() if '"level": "error"' in line]
            print(f"errors in the log: {len(errors)}", *errors[:3], sep="\n")


if __name__ == "__main__":
    main()
