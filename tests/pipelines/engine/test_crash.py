"""Real processes, really killed: what is left goes on, and ends byte-identical to an undisturbed run."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray

from curation.dataset import Dataset
from curation.dataset.manifest import Manifest
from curation.errors import OutputError
from curation.pipelines.job import run
from curation.recipe import Recipe

from ..conftest import make_corpus, recipe

ROOT = Path(__file__).resolve().parents[3]
PAUSE = 0.15


def slow_score(table: pa.Table) -> list[float]:
    """Slow enough to be killed in the middle."""
    time.sleep(PAUSE)
    return [float(len(text)) for text in table["text"].to_pylist()]


def spec(corpus: Path) -> Recipe:
    return recipe(
        corpus,
        {"step": "dedup"},
        {"step": "score", "function": "tests.pipelines.engine.test_crash:slow_score"},
        {"step": "acquire", "kind": "soft-rank", "fraction": 0.5},
        block_rows=50,
        output={"rows_per_shard": 60},
    )


DRIVER = """
import json, sys
from pathlib import Path
from curation.pipelines.job import run
from curation.recipe import Recipe
run(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), ray_address=sys.argv[3])
"""


def start_driver(recipe: Recipe, out: Path) -> subprocess.Popen[bytes]:
    address = ray.get_runtime_context().gcs_address
    with out.with_name("driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, recipe.model_dump_json(), str(out), address],
            cwd=ROOT,
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": ""},
        )


def finish(driver: subprocess.Popen[bytes], out: Path) -> None:
    assert driver.wait(timeout=120) == 0, out.with_name("driver.log").read_text()


def shards(out: Path) -> dict[str, str]:
    files = Manifest.load(out).files
    return {name: record.sha256 for name, record in files.items() if name.endswith(".arrow")}


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(spec(make_corpus(folder / "corpus")), folder / "out")
    return shards(folder / "out")


def wait_for(folder: Path, pattern: str, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert driver.poll() is None, folder.with_name("driver.log").read_text()
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.01)


def test_killed_driver_goes_on(undisturbed: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    rng = np.random.default_rng(0)
    moments = ("00-check-*/[0-9]*", "02-score-*/[0-9]*.npy", "04-write-*/[0-9]*.json")
    for pattern in moments:
        driver = start_driver(spec(corpus), out)
        wait_for(partial, pattern, driver)
        time.sleep(rng.uniform(0, 0.5))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        if out.exists():
            Dataset(out).verify()
        elif pattern == moments[1]:
            with pytest.raises(OutputError, match="interrupted run with another cut into blocks"):
                run(spec(corpus).model_copy(update={"block_rows": 64}), out)
            assert list(partial.glob(pattern))
    driver = start_driver(spec(corpus), out)
    finish(driver, out)
    assert shards(out) == undisturbed
    Dataset(out).verify()
    assert not partial.exists()


@pytest.mark.slow
def test_finished_blocks_are_not_done_again(undisturbed: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    driver = start_driver(spec(corpus), out)
    wait_for(partial, "02-score-*/0000008.npy", driver)
    driver.kill()
    driver.wait()
    time.sleep(1)  # tasks that were under way may still end
    before = {path: path.stat().st_mtime_ns for path in partial.glob("0[0-2]-*/[0-9]*.npy")}
    driver = start_driver(spec(corpus), out)
    wait_for(partial, "03-acquire-*", driver)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finish(driver, out)
    assert shards(out) == undisturbed


def kill_a_worker(title: str) -> None:
    """Kill a Ray worker that is at work on a task of this name."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if process.cmdline()[:1] and re.match(rf"ray::.*{title}", process.cmdline()[0]):
                    process.kill()
                    return
    raise AssertionError(f"no worker was seen at {title}")


def test_killed_worker_is_replaced_and_another_driver_is_refused(
    undisturbed: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = start_driver(spec(corpus), out)
    wait_for(tmp_path / "out.partial", "02-score-*/[0-9]*.npy", driver)
    kill_a_worker("score")
    with pytest.raises(OutputError, match="another run is at work"):
        run(spec(corpus), out)
    finish(driver, out)
    assert shards(out) == undisturbed


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from curation.errors import OutputError
from curation.pipelines.engine.workspace import save
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    save(Path(sys.argv[1]), np.zeros(10_000))
except OutputError as error:
    print(error)
"""


def test_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"{path}: cannot be written" in done.stdout
    assert "run the same command again" in done.stdout
    assert list(tmp_path.iterdir()) == []
