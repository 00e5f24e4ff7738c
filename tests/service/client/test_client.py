"""The two clients: the sync one is generated from the async one, and both have the same methods."""

import asyncio
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curation.service.client import AsyncClient, Client

ROOT = Path(__file__).resolve().parents[3]
GENERATE = ROOT / ".ci" / "generate-client"
ENTER_AND_EXIT = {"__aenter__": "__enter__", "__aexit__": "__exit__"}


def methods(client: type[Client | AsyncClient]) -> dict[str, inspect.Signature]:
    return {
        ENTER_AND_EXIT.get(name, name): inspect.signature(member)
        for name, member in vars(client).items()
        if inspect.isfunction(member)
    }


def without_async(signature: inspect.Signature) -> str:
    return str(signature).replace("Async", "")


def test_the_sync_client_is_what_the_async_one_generates() -> None:
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_to_one_client_alone_is_shown(tmp_path: Path) -> None:
    script = tmp_path / ".ci" / "generate-client"
    folder = tmp_path / "service" / "client"
    script.parent.mkdir()
    folder.mkdir(parents=True)
    script.write_text(GENERATE.read_text())
    for name in ("async_client.py", "client.py"):
        (folder / name).write_text((ROOT / "service" / "client" / name).read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    present = (folder / "client.py").read_text()
    (folder / "client.py").write_text(present.replace("oldest first", "in any order"))
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert '+        """All of your sessions, oldest first."""' in done.stdout
    assert "run make client" in done.stdout
    subprocess.run([sys.executable, script], check=True)
    assert (folder / "client.py").read_text() == present


def test_both_clients_have_the_same_methods_and_signatures() -> None:
    blocking, coroutines = methods(Client), methods(AsyncClient)
    assert list(blocking) == list(coroutines)
    for name, signature in blocking.items():
        assert str(signature) == without_async(coroutines[name]), name
        if not name.startswith("_"):
            assert inspect.getdoc(getattr(Client, name)) == inspect.getdoc(getattr(AsyncClient, name))


@pytest.mark.timeout(60)
def test_the_async_client_lists_sessions_and_is_pickled(live: Callable[..., Any]) -> None:
    async def run(url: str) -> tuple[list[str], list[str]]:
        async with AsyncClient(url, patience=0) as client:
            created = [(await client.create_session("random", size=10, batch_size=5)).id for _ in range(2)]
            async with pickle.loads(pickle.dumps(client)) as copy:
                return created, [summary["id"] async for summary in copy.sessions()]

    url = live().url
    created, listed = asyncio.run(run(url))
    assert listed == created
    with Client(url) as client:
        assert [summary["id"] for summary in client.sessions()] == created
