"""The B3 examples run offline and say what they should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_bi_encoder() -> None:
    out = run("bi_encoder_b3", "--limit", "600", "--steps", "10", "--batch-size", "16", "--seeds", "2")
    assert "480 pairs to train on, 120 held out" in out
    random, b3, gain = re.search(
        r"random: recall@1 (0\.\d+).*\n +B3: recall@1 (0\.\d+).*\nB3 minus random, seed by seed: ([+-]0\.\d+)", out
    ).groups()  # type: ignore[union-attr]
    assert float(b3) - float(random) == pytest.approx(float(gain), abs=0.0011)


@pytest.mark.slow
def test_sentence_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    out = run("sentence_transformers_b3", "--output", str(tmp_path))
    batches, steps = re.search(r"(\d+) batches of 32, (\d+) steps", out).groups()  # type: ignore[union-attr]
    assert int(steps) == 2 * int(batches)
    first, second = re.search(r"loss by epoch: ([\d.]+), ([\d.]+)", out).groups()  # type: ignore[union-attr]
    assert float(second) < float(first)
