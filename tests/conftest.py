"""Shared fixtures. Ray is started once for a session of tests, with 2 CPUs and no dashboard."""

import http.server
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Two processes of two threads each stall one another on small products.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray would have its workers stand back behind the other process of these tests.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


LONGEST = (
    "pipelines",
    "tests/service/test_crashes.py",
    "tests/service/http/test_dashboard.py",
    "tests/service/http/test_fuzz.py",
    "tests/service/http/dashboard/test_routes.py",
    "tests/service/store/test_postgres.py",
    "tests/service/manager/test_waiting.py",
    "tests/service/test_auth.py",
    "tests/service/test_hostile.py",
)
"""Scopes that have few tests for their time: where one came last, the other processes would wait for it."""


class _ByFile(LoadScopeScheduling):
    """Hands out scopes in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def _scope(nodeid: str) -> str:
    """A file's tests stay together, for their fixtures; those of pipelines/ share one Ray runtime, but for one."""
    file = nodeid.partition("::")[0]
    return "pipelines" if "/pipelines/" in file and not file.endswith("test_cluster.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # xdist 3.8 does not see its own xdist_group marks under pytest 9.2.
    config.option.loadscopereorder = False
    return _ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of xdist
        sizes = Counter(_scope(item.nodeid) for item in items)
        turns = {scope: -sizes[scope] for scope in sizes} | {scope: i - 10**6 for i, scope in enumerate(LONGEST)}
        items.sort(key=lambda item: turns[_scope(item.nodeid)])
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray runtime with 2 CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


class WebServer(http.server.ThreadingHTTPServer):
    """Files in memory, with ranges; with ETag or Last-Modified, or with neither."""

    daemon_threads = True

    def __init__(self, mark: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mark = mark
        self.files: dict[str, tuple[bytes, int]] = {}

    def put(self, name: str, data: bytes) -> str:
        self.files[f"/{name}"] = (data, self.files.get(f"/{name}", (b"", 0))[1] + 1)
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, *, send: bool) -> None:
        if self.path not in self.server.files:
            self.send_error(404)
            return
        data, version = self.server.files[self.path]
        asked = self.headers.get("Range")
        self.send_response(206 if asked else 200)
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            start, stop = int(low), min(int(high or len(data)) + 1, len(data))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        if self.server.mark == "ETag":
            self.send_header("ETag", f'"{version}"')
        elif self.server.mark == "Last-Modified":
            self.send_header("Last-Modified", f"Sat, 21 Nov 2026 15:00:{version:02d} GMT")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if send:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web_server() -> Iterator[Callable[[str], WebServer]]:
    """Starts a :class:`WebServer`, by the mark of versions that it gives."""
    started: list[tuple[WebServer, threading.Thread]] = []

    def start(mark: str) -> WebServer:
        server = WebServer(mark)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()
