"""A step that lives in somebody else's package is a step like ours."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from typer.testing import CliRunner, Result

from curation import cli
from curation.dataset import Dataset
from curation.dataset.manifest import Manifest
from curation.pipelines import BlockStep, Verdict, run

STEP = '''
"""Texts of enough words."""

import time

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from curation.pipelines import TEXT, BlockStep, Verdict


class Words(BlockStep):
    """Drop texts of too few or too many words."""

    column: str = "text"
    least: int = Field(default=3, ge=1)
    most: int = 1000
    pause: float = 0.0

    @property
    def scores(self):
        return ("words",)

    @property
    def reasons(self):
        return ("too few words", "too many words")

    def reads(self, made):
        return {self.column: TEXT}

    def did(self, made):
        return f"cut to {self.least} to {self.most} words"

    def judge(self, rows):
        time.sleep(self.pause)
        words = pc.list_value_length(pc.utf8_split_whitespace(rows[self.column])).to_numpy()
        dropped = np.where(words < self.least, 1, np.where(words > self.most, 2, 0))
        return Verdict({"words": words}, dropped, counts={"words": int(words.sum())})
'''

RECIPE = """\
source: {format: parquet, path: rows.parquet}
steps:
  - step: mypackage.steps:Words
    least: 3
    most: 8
    pause: PAUSE
  - step: acquire
    score: words
    fraction: 0.5
block_rows: 20
output: {rows_per_shard: 30}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """See :func:`make_home`."""
    return make_home(tmp_path)


def make_home(folder: Path) -> Path:
    """A folder with somebody's package, some rows, and a recipe."""
    package = folder / "mypackage"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "steps.py").write_text(STEP)
    texts = [" ".join(["word"] * (1 + row % 10)) + f" {row}" for row in range(400)]
    pq.write_table(pa.table({"text": texts}), folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What a run leaves, and the progress that it told."""
    home = make_home(tmp_path_factory.mktemp("undisturbed"))
    _, progress = end(start(home, "out"))
    return home / "out", progress


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Result]]:
    """Runs the recipe of ``home`` in this process, on the Ray runtime that is up."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield lambda: CliRunner().invoke(cli.app, ["run", "recipe.yaml", "-o", "out"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


def start(home: Path, out: str, pause: float = 0.0) -> subprocess.Popen[str]:
    (home / "recipe.yaml").write_text(RECIPE.replace("PAUSE", str(pause)))
    address = ray.get_runtime_context().gcs_address
    command = [
        sys.executable,
        "-m",
        "curation.cli",
        "run",
        "recipe.yaml",
        "-o",
        out,
        "--ray-address",
        address,
        "--json",
    ]
    return subprocess.Popen(
        command,
        cwd=home,
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return json.loads(stdout), [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def test_it_has_reasons_counts_progress_and_a_place_in_the_report(
    undisturbed: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, progress = undisturbed
    manifest = Manifest.load(out)
    words = np.array([2 + row % 10 for row in range(400)])
    few, many = int((words < 3).sum()), int((words > 8).sum())
    record = manifest.steps[0]
    assert record.step == "mypackage.steps:Words"
    assert record.dropped == {
        "1. mypackage.steps:Words: too few words": few,
        "1. mypackage.steps:Words: too many words": many,
    }
    assert record.details["counts"] == {"words": int(words.sum())}
    assert record.did == "cut to 3 to 8 words"
    assert manifest.scores == ["words"]
    counted = Dataset(out).decisions.counts()
    assert counted["1. mypackage.steps:Words: too few words"] == few
    assert {"event": "begin", "stage": "1. mypackage.steps:Words", "rows": 400, "done": 0} in progress
    report = (out / "report.html").read_text()
    assert "cut to 3 to 8 words" in report
    assert "Counted by mypackage.steps:Words" in report
    assert "too many words" in report
    Dataset(out).verify()


def test_killed_it_goes_on_where_it_was(undisturbed: tuple[Path, list[dict[str, Any]]], home: Path) -> None:
    driver = start(home, "out", pause=0.1)
    pieces = "01-mypackage-steps-Words-*/[0-9]*"
    deadline = time.monotonic() + 60
    while len(list((home / "out.partial").glob(f"{pieces}.jsonl"))) < 3:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    time.sleep(1)  # tasks that were under way may still end
    before = {path: path.stat().st_mtime_ns for path in (home / "out.partial").glob(pieces)}
    assert 3 <= len([path for path in before if path.suffix == ".jsonl"]) < 20
    _, progress = end(start(home, "out", pause=0.1))
    begun = next(line for line in progress if line["event"] == "begin" and line["stage"].startswith("1."))
    assert begun["done"] == 20 * len([path for path in before if path.suffix == ".jsonl"])
    hashes = [
        {name: file.sha256 for name, file in Manifest.load(out).files.items() if name.endswith(".arrow")}
        for out in (undisturbed[0], home / "out")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("least: 3", "least: 0", "recipe.yaml:4: steps.1.least: Input should be greater than or equal to 1"),
        ("least: 3", "leest: 3", "recipe.yaml:4: steps.1.leest: unknown key"),
        (
            "steps:Words",
            "steps:Word",
            "steps.1.step: function 'mypackage.steps:Word' cannot be imported",
        ),
        ("mypackage.steps:Words", "json:dumps", "recipe.yaml:3: steps.1.step: json:dumps is no step"),
        (
            "score: words",
            "score: wards",
            "step 2 (acquire) chooses by 'wards', but the steps before it make only",
        ),
        (
            "column: text",
            "column: body",
            "step 1 (mypackage.steps:Words) reads column 'body', but the source has",
        ),
    ],
)
def test_a_wrong_parameter_is_an_error_with_file_and_line(
    ray_session: None, home: Path, inside: Callable[[], Result], old: str, new: str, message: str
) -> None:
    text = RECIPE.replace("PAUSE", "0").replace("    pause: 0\n", "    column: text\n")
    assert old in text
    (home / "recipe.yaml").write_text(text.replace(old, new))
    done = inside()
    assert done.exit_code in (3, 4), done.stderr
    assert message in " ".join(done.stderr.split())
    assert not (home / "out").exists()


def test_a_verdict_that_does_not_fit_names_the_step_and_the_rows(
    ray_session: None, home: Path, inside: Callable[[], Result]
) -> None:
    path = home / "mypackage" / "steps.py"
    path.write_text(
        path.read_text().replace('Verdict({"words": words}, dropped,', 'Verdict({"words": words[1:]}, dropped,')
    )
    (home / "recipe.yaml").write_text(RECIPE.replace("PAUSE", "0"))
    done = inside()
    assert done.exit_code == 5
    message = "mypackage.steps:Words: score 'words' has shape (19,) for 20 rows: it must be one value a row"
    assert message in " ".join(done.stderr.split())


def test_a_class_made_in_a_function_goes_to_the_workers_by_value(ray_session: None, tmp_path: Path) -> None:
    class Local(BlockStep):
        @property
        def scores(self) -> tuple[str, ...]:
            return ("length",)

        def judge(self, rows: pa.Table) -> Verdict:
            return Verdict({"length": [len(text) for text in rows["text"].to_pylist()]})

    run([Local()], source=pa.table({"text": ["a", "bb"]}), out=tmp_path / "out")
    assert Dataset(tmp_path / "out").rows([0, 1])["length"].to_pylist() == [1, 2]
