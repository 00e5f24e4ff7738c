"""Clients in other languages: a recorded conversation that a server must answer alike, and a trainer in JavaScript."""

import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curation.selectors.infobatch import InfoBatch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_server_answers_as_it_was_recorded(live: Callable[..., Any]) -> None:
    replay = runpy.run_path(str(EXAMPLES / "conformance" / "replay.py"))["replay"]
    assert replay(live().url) == []


def test_another_answer_is_told(live: Callable[..., Any]) -> None:
    url = live().url
    replay = runpy.run_path(str(EXAMPLES / "conformance" / "replay.py"))["replay"]
    httpx.post(f"{url}/v1/sessions", json={"id": "conformance", "method": "random", "size": 3, "batch_size": 3})
    assert replay(url)[0].startswith("create: expected {'status': 201")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_trainer_in_javascript_gets_what_the_library_chooses(live: Callable[..., Any]) -> None:
    command = ["node", str(EXAMPLES / "service_client.mjs"), live().url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    info, losses, rows = InfoBatch(size=1000, epochs=3, delta=1.0, seed=1), 1 + np.arange(1000) / 1000, []
    losses = losses.astype(np.float32)
    for epoch in range(3):
        indices = info.epoch(epoch).indices
        info.update(indices, losses[indices])
        losses[indices] /= 2
        rows.append(len(indices))
    assert done.stdout == f"rows trained on in each epoch: {' '.join(map(str, rows))}\n"
    assert rows[1] < 1000
