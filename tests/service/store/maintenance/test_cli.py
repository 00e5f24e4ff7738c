"""Maintenance of a store beside a server that runs, and on its own."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.service.client import Client
from curation.service.store import Store
from curation.service.store.maintenance.cli import store as commands
from tests.service.store.test_tables import FIRST


def curation_store(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What a command answers with ``--json``."""
    done = CliRunner().invoke(commands, [*map(str, arguments), "--json"])
    assert done.exit_code == status, done.output
    return dict(json.loads(done.stdout))


def trained(client: Client, id: str, steps: int = 6) -> list[Any]:
    """A session that took some steps into its second epoch; its batches."""
    client.create_session("infobatch", id=id, size=16, batch_size=4, epochs=3)
    batches, reports = [], []
    for step in range(steps):
        batches.append(client.step(id, step, reports=reports).indices)
        reports = [(step, np.linspace(0, 1, len(batches[-1]), dtype=np.float32))]
    return batches


@pytest.fixture
def server(live: Callable[..., Any], tmp_path: Path) -> Any:
    return live(store=f"sqlite:///{tmp_path}/store.db")


def test_a_backup_of_a_running_server_goes_on_where_it_was_made(
    server: Any, live: Callable[..., Any], tmp_path: Path
) -> None:
    with Client(server.url) as client:
        batches = trained(client, "s")
        made = curation_store("backup", tmp_path / "copy.db", "--store", server.settings.store)
        client.delete("s")
    assert (made["sessions"], made["bytes"]) == (1, (tmp_path / "copy.db").stat().st_size)
    assert CliRunner().invoke(commands, ["backup", str(tmp_path / "copy.db")]).exit_code != 0
    with Client(live(store=f"sqlite:///{tmp_path}/copy.db").url) as client:
        assert np.array_equal(client.step("s", 5).indices, batches[5])


def test_a_store_that_fits_together_is_told_from_one_that_does_not(server: Any, tmp_path: Path) -> None:
    url = server.settings.store
    with Client(server.url) as client:
        trained(client, "s")
    checked = curation_store("check", "--store", url)
    assert checked == {"sessions": 1, "epochs": 2, "reports": 5, "problems": []}
    with sqlite3.connect(tmp_path / "store.db") as other:
        other.execute("UPDATE reports SET losses = x'00' WHERE step = 1")
        other.execute("DELETE FROM blobs WHERE kind LIKE 'state:%:0'")
        other.execute("UPDATE epochs SET first_step = 7 WHERE number = 1")
    other.close()
    problems = [problem["what"] for problem in curation_store("check", "--store", url, status=7)["problems"]]
    assert problems == ["epoch 1 at step 7 does not follow the one before, to step 4"]
    with sqlite3.connect(tmp_path / "store.db") as other:
        other.execute("UPDATE epochs SET first_step = 4 WHERE number = 1")
    other.close()
    problems = [problem["what"] for problem in curation_store("check", "--store", url, status=7)["problems"]]
    assert problems == [
        "the state of epoch 1 has 0 of 64 bytes of scores",
        "the report of rank 0, step 1 has 1 bytes for 4 losses",
    ]


def test_vacuum_gives_space_back_beside_a_server(server: Any, tmp_path: Path) -> None:
    with Client(server.url) as client:
        client.create_session("random", id="s", size=100_000, batch_size=4096)
        for step in range(20):
            client.report("s", [(step, np.zeros(4096, np.float32))])
        client.delete("s")
        server.app.state.service.store.remover.wait()
        freed = curation_store("vacuum", "--store", server.settings.store)
        assert freed["online"]
        assert freed["bytes_after"] < freed["bytes_before"] - 20 * 4096 * 4
        assert client.create_session("random", size=10, batch_size=2).size == 10


def test_vacuum_of_an_older_store_waits_until_no_server_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text())
    connection.close()
    store = Store(f"sqlite:///{path}")
    store.own()
    refused = CliRunner().invoke(commands, ["vacuum", "--store", f"sqlite:///{path}"])
    assert "stop the server" in str(refused.exception)
    store.close()
    assert not curation_store("vacuum", "--store", f"sqlite:///{path}")["online"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()


@pytest.mark.parametrize(
    "command", [["store", "check"], ["store", "vacuum"], ["token", "list"], ["audit"], ["trace", "x", "--spikes"]]
)
def test_a_store_that_is_not_there_is_no_empty_one(tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "spelled-wrong.db"
    done = CliRunner().invoke(app, [*command, "--store", f"sqlite:///{file}"])
    assert done.exit_code != 0
    assert "there is no such store" in " ".join(done.output.split())
    assert not file.exists()
