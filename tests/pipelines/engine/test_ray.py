"""The runtime of a run, in a process of its own: addresses, and what the caller finds afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from curation.errors import CurationError
from curation.pipelines.engine.ray import runtime

ROOT = Path(__file__).resolve().parents[3]

CALLER = """
import logging, os
import ray
from curation.errors import CurationError
from curation.pipelines.engine.ray import run_one, runtime

logger = logging.getLogger("ray")
logger.setLevel(logging.DEBUG)
mine = logging.NullHandler()
logger.addHandler(mine)

def state():
    return logger.level, list(logger.handlers), logger.propagate, dict(os.environ)

before = state()
for _ in range(2):
    with runtime(workers=1) as grows:
        assert not grows
        run_one(lambda: None)
    assert not ray.is_initialized()
    assert state() == before, state()
"""


def test_an_empty_address_is_none_and_the_caller_keeps_its_logging() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RAY_ADDRESS": " "},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("address", ["nonsense", "host:abc", "http://x", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_said_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests' own runtime would be used as it is.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(CurationError, match="no Ray cluster can be reached at") as raised, runtime(address):
        raise AssertionError
    assert "\n" not in str(raised.value)
    assert address in str(raised.value)
