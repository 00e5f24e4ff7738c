"""Steps per second of the REST service, beside a bare FastAPI route that returns the same bytes.

``python -m benchmarks.service``. Servers run in a process of their own, the load comes from another one over 16
connections of loopback, as fast as answers come back. Rounds of the bare route and of ours alternate, so that whatever
else the machine does hits both.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from curation.service.client import Client
from curation.service.client.requests import ARROW, Requests

ROOT = Path(__file__).resolve().parents[1]
ROWS = 1024
AHEAD = 2500  # requests a second
SERVE = "import typer; from curation.service.cli import serve; typer.run(serve)"
BARE = """
import sys, uvicorn
from fastapi import FastAPI, Request, Response
answer = open(sys.argv[2], "rb").read()
app = FastAPI()
@app.post("/steps")
async def steps(request: Request) -> Response:
    await request.body()
    return Response(answer, media_type="application/vnd.apache.arrow.stream")
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


def http_post(path: str, body: bytes) -> bytes:
    """A whole request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {ARROW}\r\nAccept: {ARROW}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def load(
    port: int, connections: int, seconds: float, requests: Callable[[int, int], bytes], first: int
) -> dict[str, Any]:
    """Send ``requests(connection, n)`` on every connection, each as soon as the one before is answered."""
    latencies: list[float] = []
    sent = [first] * connections

    async def one(connection: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            request = requests(connection, sent[connection])
            start = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"refused: {head!r} {await reader.read(1000)!r}")
            lower = head.lower()
            place = lower.index(b"content-length:") + 15
            await reader.readexactly(int(lower[place : lower.index(b"\r", place)]))
            latencies.append(time.perf_counter() - start)
            sent[connection] += 1
        writer.close()

    async def all_of_them() -> float:
        start = time.perf_counter()
        await asyncio.gather(*(one(number, start + seconds) for number in range(connections)))
        return time.perf_counter() - start

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = runner.run(all_of_them())
    return {"rate": len(latencies) / taken, "p99": float(np.quantile(latencies, 0.99)), "next": max(sent)}


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process, so that the load shares no interpreter with anything."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def _load(port: int, connections: int, seconds: float, path: str, reporting: bool, first: int) -> dict[str, Any]:
    requests, losses = Requests(), np.random.default_rng(0).random(ROWS, np.float32)
    session = path.split("/")[3] if path != "/steps" else "x"

    def request(connection: int, step: int) -> bytes:
        reports = [(step - 1, losses)] if reporting and step > 0 else []
        body = requests.step(session, step=step, rank=connection, reports=reports, generation=None).content
        assert body is not None
        return http_post(path, body)

    if path == "/steps":
        # The bare route gets requests of the same size, made in advance: it needs no numbers in them.
        bodies = [request(c, 1) for c in range(connections)]
        return load(port, connections, seconds, lambda c, step: bodies[c], first)
    # Ours in advance, too, as many as a server could answer: encoding losses is the trainers' work, and they have
    # processors of their own.
    ahead = int(seconds * AHEAD / connections)
    ready = {(c, step): request(c, step) for c in range(connections) for step in range(first, first + ahead)}
    return load(port, connections, seconds, lambda c, step: ready.pop((c, step), None) or request(c, step), first)


def start(command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **environment})


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> float:
    begin = time.perf_counter()
    with httpx.Client() as client:
        while True:
            try:
                if client.get(url).status_code < 500:
                    return time.perf_counter() - begin
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def row(name: str, bare: list[float], ours: list[dict[str, Any]]) -> str:
    rates = [one["rate"] for one in ours]
    shares = sorted(rate / peer for rate, peer in zip(rates, bare, strict=True))
    p99 = statistics.median(one["p99"] for one in ours) * 1000
    return (
        f"{name:<44} {statistics.median(bare):>9.0f} {statistics.median(rates):>9.0f}"
        f"   {statistics.median(shares):>4.0%} ({shares[0]:.0%}–{shares[-1]:.0%})   {p99:>6.1f} ms"
    )


def throughput(arguments: argparse.Namespace, folder: Path) -> None:
    port, bare_port = free_port(), free_port()
    store = f"sqlite:///{folder}/bench.db"
    server = start([sys.executable, "-c", SERVE, "--port", str(port), "--store", store], folder / "server.log")
    wait(f"http://127.0.0.1:{port}/readyz", server, folder / "server.log")
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            options = {"batch_size": ROWS, "world_size": arguments.connections, "epochs": 1000, "seed": 1}
            plain = client.create_session("random", size=10**8, **options).id
            learned = client.create_session("infobatch", size=arguments.infobatch, **options).id
            for session in (plain, learned):
                client.step(session, 0)
        step = Requests().step(plain, step=0, rank=0, reports=(), generation=None)
        kinds = {"Accept": ARROW, "Content-Type": ARROW}
        answer = httpx.post(f"http://127.0.0.1:{port}{step.path}", content=step.content, headers=kinds)
        (folder / "answer").write_bytes(answer.content)
        (folder / "bare.py").write_text(BARE)
        command = [sys.executable, str(folder / "bare.py"), str(bare_port), str(folder / "answer")]
        bare = start(command, folder / "bare.log")
        try:
            wait(f"http://127.0.0.1:{bare_port}/x", bare, folder / "bare.log")
            print(f"{'':<44} {'bare':>9} {'ours':>9}   share of bare       p99")
            for name, session, reporting in (
                ("random, no reports", plain, False),
                ("random, a report with each step, durable", plain, True),
                ("infobatch, a report with each step, durable", learned, True),
            ):
                peer: list[float] = []
                ours: list[dict[str, Any]] = []
                following = 0
                for repeat in range(arguments.repeats + 1):
                    seconds = arguments.seconds if repeat else 0.5
                    one = in_process(_load, bare_port, arguments.connections, seconds, "/steps", reporting, 0)
                    path = f"/v1/sessions/{session}/steps"
                    two = in_process(_load, port, arguments.connections, seconds, path, reporting, following)
                    following = two["next"]
                    if repeat:
                        peer.append(one["rate"])
                        ours.append(two)
                print(row(name, peer, ours), flush=True)
        finally:
            bare.terminate()
            bare.wait()
    finally:
        server.terminate()
        server.wait()


def opening(arguments: argparse.Namespace, folder: Path) -> None:
    """Seconds until a new session's first batch, and what it keeps resident for each candidate."""
    port = free_port()
    store = f"sqlite:///{folder}/open.db"
    server = start([sys.executable, "-c", SERVE, "--port", str(port), "--store", store], folder / "open.log")
    try:
        wait(f"http://127.0.0.1:{port}/readyz", server, folder / "open.log")
        with Client(f"http://127.0.0.1:{port}", timeout=300) as client:
            for method in ("random", "infobatch"):
                client.step(client.create_session(method, size=100_000, batch_size=8).id, 0)
                begin = time.perf_counter()
                session = client.create_session(method, size=arguments.size, batch_size=ROWS, epochs=10).id
                created = time.perf_counter() - begin
                client.step(session, 0)
                first = time.perf_counter() - begin
                resident = client.session(session).raw["resident_bytes"] / arguments.size
                print(
                    f"{method:<10} over N = {arguments.size:.0e}: created {created:.2f} s, first batch {first:.2f} s, "
                    f"{resident:.1f} bytes a candidate kept"
                )
                client.delete(session)
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        print(f"peak memory of the server {int(peak) / 2**20:.2f} GiB")
    finally:
        server.terminate()
        server.wait()


def cold_start(arguments: argparse.Namespace, folder: Path) -> None:
    """Seconds from starting the process to ready, over a store of 1,000 sessions."""
    from curation.service.session.caller import ANYONE
    from curation.service.session.spec import SessionSpec
    from curation.service.store import Store

    url = f"sqlite:///{folder}/cold.db"
    store = Store(url)
    for number in range(1000):
        method = "infobatch" if number % 2 else "random"
        spec = SessionSpec(method=method, size=10_000, batch_size=64)
        store.create(f"session-{number}", ANYONE, spec, 10_000, {})
    store.close()
    seconds = []
    for _ in range(5):
        port = free_port()
        log = folder / "cold.log"
        begin = time.perf_counter()
        server = start([sys.executable, "-c", SERVE, "--port", str(port), "--store", url], log)
        wait(f"http://127.0.0.1:{port}/readyz", server, log)
        seconds.append(time.perf_counter() - begin)
        server.terminate()
        server.wait()
    spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f})"
    print(f"cold start with 1,000 sessions: ready in {spread}")


PARTS = {"throughput": throughput, "opening": opening, "cold": cold_start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="only this; all where not given")
    parser.add_argument("--seconds", type=float, default=4, help="of one round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--size", type=int, default=10**8, help="candidates of the session that is opened")
    parser.add_argument("--infobatch", type=int, default=10**8, help="candidates of the InfoBatch session under load")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.part or PARTS:
            PARTS[part](arguments, Path(folder))


if __name__ == "__main__":
    main()
