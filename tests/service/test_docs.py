"""docs/service.md: its curl walk-through, run as it stands, and its table of methods."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curation.service.session.methods.registry import METHODS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "service.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_line_of_the_walk_through_runs(live: Callable[..., Any], tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    script = "\n".join(blocks).replace("/tmp/demo.arrow", f"{tmp_path}/demo.arrow")
    assert script.count("curl") >= 20
    command = ["bash", "-euo", "pipefail", "-x", "-c", script.replace("| head -3", "> /dev/null")]
    done = subprocess.run(command, env={"URL": live().url, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = done.stdout
    assert answers.count('"epoch_end":250') == 3
    assert "urn:curation:problem:bad-rank" in answers
    assert '"reports":1,"last_reported":0' in answers
    assert '"id":"copy"' in answers
    created, *_, rewound = re.findall(r'{"id":"demo","generation":(\d+)', answers)
    assert int(rewound) == int(created) + 2  # resized, and rewound once
    assert '"on_missing":{"after_seconds":60.0,"quorum":0.0}' in answers
    assert answers.count('{"indices":[48,81,6]') == 2
    assert "urn:curation:problem:not-sent" in answers


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_line(name: str) -> None:
    assert f"\n| `{name}` | " in DOCS.read_text()
