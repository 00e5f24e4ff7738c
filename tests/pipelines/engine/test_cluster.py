"""A cluster that somebody else started: by address, and through ``ray job submit``."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from curation.dataset import Dataset
from curation.dataset.manifest import Manifest

from ..conftest import recipe

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
# No token: the dashboard of this throw-away cluster listens on loopback only.
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a head node and of its dashboard."""
    port, dashboard = _free_port(), _free_port()
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"),
        *("--include-dashboard=true", f"--dashboard-port={dashboard}", "--disable-usage-stats"),
        # Its agent takes jobs, and shares this machine with the agents of other tests' runtimes.
        "--dashboard-agent-listen-port=0",
    ]
    with (tmp_path / "cluster.log").open("wb") as log:
        head = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                    break
            except OSError:
                assert head.poll() is None, (tmp_path / "cluster.log").read_text()
                assert time.monotonic() < deadline, "the dashboard never answered"
                time.sleep(0.2)
        yield f"127.0.0.1:{port}", url
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def _submit(dashboard: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Submit a job; the agent that takes it comes up some time after the dashboard does."""
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--address", dashboard, "--", *command],
            env=ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@pytest.mark.slow
def test_ray_job_submit_and_address(cluster: tuple[str, str], corpus: Path, tmp_path: Path) -> None:
    address, dashboard = cluster
    spec = recipe(corpus, {"step": "dedup"}, {"step": "score", "column": "quality"}, {"step": "acquire", "count": 50})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    command = [str(BIN / "curation"), "run", str(path)]

    submitted = _submit(dashboard, [*command, "-o", str(tmp_path / "job")])
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert re.search("succeeded", submitted.stdout + submitted.stderr)
    Dataset(tmp_path / "job").verify()

    addressed = subprocess.run(
        [*command, "-o", str(tmp_path / "address"), "--ray-address", address],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert addressed.returncode == 0, addressed.stdout + addressed.stderr
    job, direct = Manifest.load(tmp_path / "job"), Manifest.load(tmp_path / "address")
    assert job.recipe_sha256 == direct.recipe_sha256
    assert {n: f for n, f in job.files.items() if n.startswith("data-")} == {
        n: f for n, f in direct.files.items() if n.startswith("data-")
    }
