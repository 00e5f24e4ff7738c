"""CONTRIBUTING's walks, followed to the letter in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curation.dataset.manifest import Manifest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("curation", "gpu", "selectors", "pipelines", "service", "configs", "tests")
BLOCK = re.compile(
    r"^```(?:python|yaml)\n# (?P<path>[\w./-]+)(?:, in (?P<table>\w+))?\n(?P<text>.*?)^```$", re.M | re.S
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, with every file and line of CONTRIBUTING's walks."""
    home = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    blocks = list(BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()))
    assert len(blocks) >= 6
    for block in blocks:
        path = home / block["path"]
        if block["table"] is None:
            assert not path.exists(), f"{block['path']} is there already"
            path.write_text(block["text"])
        else:
            assert block["text"].count("\n") == 1, "one line"
            head = re.compile(rf"^({block['table']}\b.*\{{)$", re.M)
            text, count = head.subn(rf"\1\n{block['text'].rstrip()}", path.read_text())
            assert count == 1, f"no table {block['table']} in {block['path']}"
            path.write_text(text)
    return home


def python(home: Path, *arguments: str) -> str:
    """Run Python in the copy, whose code goes before what is installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home), "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_step_runs(copy: Path) -> None:
    python(copy, "-m", "curation.cli", "run", "words.yaml", "-o", "out", "--workers", "1")
    manifest = Manifest.load(copy / "out")
    assert 0 < manifest.rows_out < manifest.rows_in
    assert manifest.steps[0].dropped == {"1. words: too few words": manifest.rows_in - manifest.rows_out}
    assert "cut to those of 40 words and more" in (copy / "out" / "report.html").read_text()
    assert "verified" in python(copy, "-m", "curation.cli", "verify", "out")
    assert '"words"' in python(copy, "-m", "curation.cli", "schema")


def test_the_tests_of_the_walks_pass(copy: Path) -> None:
    tests = [
        "tests/pipelines/steps/test_words.py",
        "tests/pipelines/steps/test_parameters.py",
        "tests/service/session/methods/test_sorted.py",
    ]
    assert "passed" in python(copy, "-m", "pytest", "-q", "-n", "0", *tests)


def test_the_method_is_on_the_face(copy: Path) -> None:
    code = "from curation import Longest; print(Longest(least=2).select(['a', 'ccc', 'bb'], 3).indices.tolist())"
    assert python(copy, "-c", code) == "[1, 2]\n"
