"""One token attacks the service, another trains: what the attacks do to the one that trains, one attack after another.

``python -m benchmarks.soak.hostile``. The server, the attackers and the honest trainer are processes of their own. The
trainer takes steps of 1,024 rows and reports each; its latencies under an attack stand beside those of the quiet
seconds right before it, with the server's peak memory. The last attack is what an honest, but large, job does.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pyarrow as pa

from benchmarks.service import SERVE, free_port, start, wait
from curation.service.access.tokens import issue_token
from curation.service.client import ARROW, Client
from curation.service.store import Store

ROWS = 1024
JSON = "application/json"
LARGE = 1 << 19
"""Rows of a batch of the attacker's own session, whose reports are large and valid."""


class Target(NamedTuple):
    """What an attacker knows: the server, a token of its own, and sessions it made."""

    port: int
    token: str
    small: str
    large: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: bytes, kind: str = JSON, *, token: bool = True, wait: float = 70) -> int:
        """The status of the answer; 0 where none came."""
        headers = {"Content-Type": kind, "Accept": kind}
        if token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            return httpx.post(f"{self.url}{path}", content=body, headers=headers, timeout=wait).status_code
        except httpx.TransportError:
            return 0

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def arrow(table: pa.Table, codec: str | None = None, **metadata: str) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(metadata)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=1 << 30)
    return bytes(sink.getvalue())


def empty_reports(target: Target) -> None:
    """Five million empty reports in a few thousand bytes."""
    count = 5_000_000
    lists = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.float32()))
    body = arrow(pa.table({"step": np.zeros(count, np.int64), "losses": lists}), "zstd", step="1")
    while True:
        target.post(f"/v1/sessions/{target.small}/steps", body, ARROW)
        target.post("/v1/sessions/nobodys/steps", body, ARROW)


def many_reports_json(target: Target) -> None:
    """Two million empty reports in JSON."""
    body = b'{"step": 1, "reports": [' + b",".join([b'{"step":0,"losses":[]}'] * 2_000_000) + b"]}"
    while True:
        target.post(f"/v1/sessions/{target.small}/steps", body)
        target.post(f"/v1/sessions/{target.large}/steps", body)


def many_losses_json(target: Target) -> None:
    """One report of thirty million losses in JSON."""
    body = b'{"step": 1, "reports": [{"step": 0, "losses": [' + b",".join([b"0"] * 30_000_000) + b"]}]}"
    while True:
        target.post(f"/v1/sessions/{target.large}/steps", body)


def valid_reports(target: Target) -> None:
    """Thirty reports of half a million losses each, all valid, in one request after another."""
    kind = pa.list_(pa.float32())
    step = 0
    while True:
        losses = pa.array([np.ones(LARGE, np.float32)] * 30, kind)
        body = arrow(pa.table({"step": np.arange(step, step + 30), "losses": losses}))
        target.post(f"/v1/sessions/{target.large}/steps", body, ARROW)
        step = (step + 30) % 3000


def json_to_rewind(target: Target) -> None:
    """Sixty megabytes of JSON for a route whose body is one number, without a token."""
    body = b'{"step": [' + b",".join([b"0"] * 30_000_000) + b"]}"
    while True:
        target.post(f"/v1/sessions/{target.small}/rewind", body, token=False)
        target.post(f"/v1/sessions/{target.small}/rewind", body)


def endless_headers(target: Target) -> None:
    """Headers for as long as the server takes them."""
    piece = b"X-Header: " + b"x" * 60_000 + b"\r\n"
    while True:
        with target.dial() as connection:
            try:
                connection.sendall(b"GET /healthz HTTP/1.1\r\n")
                while True:
                    connection.sendall(piece)
            except OSError:
                pass


def half_requests(target: Target) -> None:
    """Two thousand connections with half a request each, and new ones for those that are closed."""
    held: list[socket.socket] = []
    while True:
        try:
            connection = target.dial()
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Part: ")
            held.append(connection)
        except OSError:
            time.sleep(0.01)
        if len(held) > 2000:
            held.pop(0).close()
            time.sleep(0.005)


def large_sessions(target: Target) -> None:
    """Sessions of ten million candidates, one after another: each is opened, asked for a batch, and deleted."""
    number = 0
    with Client(target.url, token=target.token, patience=0, timeout=70) as client:
        while True:
            number += 1
            try:
                id = client.create_session("infobatch", size=10**7, batch_size=8, id=f"{os.getpid()}-{number}").id
                client.step(id, 0)
                client.delete(id)
            except Exception:
                continue


def json_plans(target: Target) -> None:
    """Sessions whose plan, of four million rows, comes in JSON."""
    rows = ",".join(map(str, range(4_000_000)))
    body = f'{{"method": "plan", "size": 4000000, "batch_size": 8, "parameters": {{"batches": [[{rows}]]}}}}'.encode()
    while True:
        target.post("/v1/sessions", body)


def selections(target: Target) -> None:
    """Texts that would take hours to compress."""
    request = {"texts": ["x" * 10_000_000], "targets": ["y" * 100] * 200_000, "k": 1}
    body = json.dumps(request).encode()
    while True:
        target.post("/v1/select/zipfit", body)


def steps(target: Target) -> None:
    """Small, valid steps, as fast as they are answered."""
    with Client(target.url, token=target.token, patience=0) as client:
        step = 0
        while True:
            client.step(target.small, step % 50, reports=[(step % 50 - 1, np.ones(ROWS))] if step % 50 else [])
            step += 1


class Attack(NamedTuple):
    """``clients`` processes that do the same."""

    name: str
    act: Callable[[Target], None]
    clients: int


ATTACKS = (
    Attack("5 M empty reports, zstd", empty_reports, 4),
    Attack("2 M empty reports, JSON", many_reports_json, 2),
    Attack("30 M losses, JSON", many_losses_json, 2),
    Attack("60 MiB to /rewind, no token", json_to_rewind, 4),
    Attack("headers without end", endless_headers, 4),
    Attack("2,000 half requests", half_requests, 2),
    Attack("plans in JSON", json_plans, 2),
    Attack("/select for hours", selections, 4),
    Attack("60 MiB of valid reports", valid_reports, 3),
    Attack("sessions of 10 M opened", large_sessions, 4),
    Attack("steps without a pause", steps, 8),
)


def train(url: str, token: str, session: str, first: int, seconds: float) -> tuple[list[float], int]:
    """Steps with reports, twenty at most a second, as a trainer takes them: seconds of each, and the next step."""
    taken, step, losses = [], first, np.ones(ROWS, np.float32)
    end = time.perf_counter() + seconds
    with Client(url, token=token, patience=120) as client:
        while time.perf_counter() < end:
            begin = time.perf_counter()
            client.step(session, step, reports=[(step - 1, losses)] if step else [])
            taken.append(time.perf_counter() - begin)
            step += 1
            time.sleep(max(0.0, 0.05 - taken[-1]))
    return taken, step


@contextmanager
def attacked(attack: Attack, target: Target) -> Iterator[None]:
    """The attack is under way, by processes that leave the processors to others, as those of another machine would."""

    def act() -> None:
        os.nice(19)
        attack.act(target)

    context = get_context("fork")
    processes = [context.Process(target=act, daemon=True) for _ in range(attack.clients)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def memory(process: "subprocess.Popen[bytes]", name: str) -> float:
    """MiB of a process, from its status."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


@contextmanager
def served(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Target, str, str]]:
    """A server with two tokens and their sessions: the process, the attacker's target, the honest token and session."""
    url = f"sqlite:///{folder}/hostile.db"
    store = Store(url)
    hostile, honest = (issue_token(store, name, frozenset({"select"}), owner=name)[1] for name in ("hostile", "honest"))
    store.close()
    port, log = free_port(), folder / "server.log"
    server = start([sys.executable, "-c", SERVE, "--port", str(port), "--store", url], log)
    try:
        wait(f"http://127.0.0.1:{port}/readyz", server, log)
        with ExitStack() as stack:
            mine, theirs = (stack.enter_context(Client(f"http://127.0.0.1:{port}", token=t)) for t in (honest, hostile))
            session = mine.create_session("random", size=10**8, batch_size=ROWS, epochs=1000).id
            small = theirs.create_session("random", size=10**6, batch_size=ROWS, epochs=1000).id
            large = theirs.create_session("random", size=10**8, batch_size=LARGE, epochs=1000).id
        yield server, Target(port, hostile, small, large), honest, session
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each attack, and of the quiet before it")
    parser.add_argument("--attack", action="append", help="only those whose name has this; all where not given")
    arguments = parser.parse_args()
    chosen = [one for one in ATTACKS if not arguments.attack or any(part in one.name for part in arguments.attack)]
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (server, target, token, session):
        step = train(target.url, token, session, 0, 2)[1]
        print(f"{'attack':<30} {'quiet p99':>10} {'p99':>10} {'ratio':>7} {'worst':>10} {'steps':>6} {'peak RSS':>10}")
        for attack in chosen:
            quiet, step = train(target.url, token, session, step, arguments.seconds)
            Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak begins anew
            with attacked(attack, target):
                time.sleep(2)
                under, step = train(target.url, token, session, step, arguments.seconds)
            before, after = (float(np.quantile(times, 0.99)) * 1000 for times in (quiet, under))
            print(
                f"{attack.name:<30} {before:>7.1f} ms {after:>7.1f} ms {after / before:>6.1f}× "
                f"{max(under) * 1000:>7.0f} ms {len(under):>6} {memory(server, 'VmHWM'):>6.0f} MiB",
                flush=True,
            )
            time.sleep(1)


if __name__ == "__main__":
    main()
