"""Pieces whose workers die, in tasks and in actors: begun anew, counted, and given up with a reason."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from curation.errors import SourceError, StepError
from curation.pipelines.engine.pool import TRIES
from curation.pipelines.engine.ray import run_one, run_pieces
from curation.progress import Silent

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass(frozen=True)
class Number:
    number: int
    rows: int = 1


class Counted(Silent):
    """Sums what it is told."""

    rows = 0

    def advance(self, rows: int) -> None:
        self.rows += rows


@dataclass(frozen=True)
class Dies:
    """Notes that a piece was begun, and kills its own worker the first ``deaths`` times."""

    folder: Path
    deaths: int
    only: int | None = None

    def __call__(self, piece: Number | None = None) -> None:
        number = 0 if piece is None else piece.number
        mark = self.folder / f"{number}.begun"
        with mark.open("ab") as file:
            file.write(b".")
        if self.only in (None, number) and mark.stat().st_size <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"{number}.done").touch()

    def begun(self, number: int = 0) -> int:
        return (self.folder / f"{number}.begun").stat().st_size


@pytest.mark.parametrize("actors", [False, True])
def test_pieces_whose_workers_die_are_begun_anew(actors: bool, tmp_path: Path) -> None:
    task, progress = Dies(tmp_path, deaths=1, only=1), Counted()
    run_pieces(task, [Number(n) for n in range(4)], label="dies", progress=progress, actors=actors)
    assert [task.begun(n) for n in range(4)] == [1, 2, 1, 1]
    assert len(list(tmp_path.glob("*.done"))) == progress.rows == 4


@pytest.mark.parametrize("actors", [False, True])
def test_a_piece_that_always_kills_its_worker_is_given_up(
    actors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker takes seconds to come up.
    tries = 2
    monkeypatch.setattr("curation.pipelines.engine.pool.TRIES", tries)
    task = Dies(tmp_path, deaths=100)
    pieces = partial(run_pieces, task, [Number(0)], label="dies", progress=Silent(), actors=True)
    with pytest.raises(StepError, match=rf"piece 0 lost its process {tries} times.*memory_mib.*block_bytes"):
        pieces() if actors else run_one(task)
    assert task.begun() == tries


@dataclass(frozen=True)
class Order:
    folder: Path

    def __call__(self, piece: Number) -> None:
        with (self.folder / "order").open("a") as file:
            file.write(f"{piece.number} ")
        if piece.number == 7:
            raise SystemExit("enough")


def test_one_worker_takes_pieces_in_their_order_until_one_fails(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="SystemExit: enough"):
        run_pieces(Order(tmp_path), [Number(n) for n in range(20)], label="order", progress=Silent(), workers=1)
    assert (tmp_path / "order").read_text().split() == [str(n) for n in range(8)]


@dataclass(frozen=True)
class Sleeps:
    folder: Path

    def __call__(self, piece: Number) -> None:
        (self.folder / f"{piece.number}.pid").write_text(str(os.getpid()))
        if piece.number == 1:
            while not (self.folder / "0.pid").exists():
                time.sleep(0.01)
            raise SourceError("gone")
        time.sleep(600)


def assert_killed(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(30)


def test_what_is_under_way_is_killed_when_one_fails(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone"):
        run_pieces(Sleeps(tmp_path), [Number(0), Number(1)], label="sleeps", progress=Silent())
    assert_killed(int((tmp_path / "0.pid").read_text()))


def test_ctrl_c_kills_what_is_under_way(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "0.pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_pieces(Sleeps(tmp_path), [Number(0)], label="sleeps", progress=Silent())
    thread.join()
    assert_killed(int((tmp_path / "0.pid").read_text()))


NODE = """
import sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from curation.pipelines.engine.ray import run_pieces
from tests.pipelines.engine.test_pool import Counted, Number

folder = Path(sys.argv[1])

def piece(one):
    (folder / f"{one.number}-{ray.get_runtime_context().get_node_id()}").touch()
    time.sleep(0.2)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
cluster.connect()
nodes = []

class Watch(Counted):
    def advance(self, rows):
        super().advance(rows)
        if self.rows == 10:
            nodes.extend({path.name.split("-")[1] for path in folder.iterdir()})
            cluster.remove_node(other, allow_graceful=False)

watch = Watch()
run_pieces(piece, [Number(n) for n in range(40)], label="piece", progress=watch, actors=sys.argv[2] == "actors")
assert (len(nodes), watch.rows) == (2, 40), (nodes, watch.rows)
assert {int(path.name.split("-")[0]) for path in folder.iterdir()} == set(range(40))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_a_node_that_dies_takes_no_piece_with_it(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NODE, str(tmp_path), kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert done.returncode == 0, done.stderr


OUT_OF_MEMORY = """
import os, sys
from pathlib import Path
import psutil
memory = psutil.virtual_memory()
os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + 2**30) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import numpy as np
from curation.errors import StepError
from curation.pipelines.engine import pool
from curation.pipelines.engine.ray import run_one, runtime

mark = Path(sys.argv[1]) / "begun"
pool.PAUSE = 0.01

def grows():
    import time
    with mark.open("ab") as file:
        file.write(b".")
    held = [np.ones(2**25) for _ in range(16)]
    time.sleep(20)

with runtime(workers=1):
    try:
        run_one(grows)
    except StepError as error:
        print(mark.stat().st_size, error)
"""


@pytest.mark.slow
def test_a_task_that_ray_kills_for_memory_is_begun_five_times(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert re.match(rf"[1-{TRIES}] grows: piece 0 was killed for want of memory {TRIES} times", done.stdout), (
        done.stdout
    )
