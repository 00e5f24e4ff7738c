"""The two clients: the sync one is generated from the async one, and both have the same methods."""

import asyncio
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import AsyncClient, Client, ServiceError

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


def test_every_route_of_the_service_has_a_method(live: Callable[..., Any]) -> None:
    with Client(live().url) as client:
        session = client.create_session("infobatch", size=100, batch_size=10, epochs=2).id
        batch = client.step(session, 0)
        client.report(session, [(0, batch.weights)])
        assert [(epoch["number"], epoch["rows"]) for epoch in client.epochs(session)] == [(0, 100)]
        losses = client.losses(session, limit=1, bins=2)
        assert (losses["reports"][0]["mean"], len(losses["bins"])) == (1.0, 3)
        assert client.datasets() == []
        with pytest.raises(ServiceError, match="not-found|bad-dataset"):
            client.dataset("none")
        info = client.resize(session, 2, generation=client.session(session).generation, from_step=1)
        assert (info.world_size, info.from_step) == (2, 1)
        assert client.session(client.restore(client.checkpoint(session)).id).world_size == 2


def test_an_error_of_the_service_goes_to_other_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(ServiceError("busy", "try again", 503, {"missing": 3})))
    assert (str(error), error.kind, error.status, error.members) == ("busy: try again", "busy", 503, {"missing": 3})


def test_batches_of_several_ranks_and_steps_are_those_of_single_requests(live: Callable[..., Any]) -> None:
    with Client(live().url, patience=0) as client:
        session = client.create_session("infobatch", size=50, batch_size=4, epochs=2, world_size=3).id
        many = client.batches(session, 1, steps=9, ranks=[2, 0])
        assert [len(many[rank]) for rank in (0, 2)] == [3, 3]
        for rank in (0, 2):
            for step, batch in enumerate(many[rank], 1):
                one = client.step(session, step, rank=rank)
                assert all(np.array_equal(a, b) for a, b in zip(one, batch, strict=True))
        reports = {
            rank: [(step, client.step(session, step, rank=rank).weights) for step in range(4)] for rank in range(3)
        }
        following = client.batches(session, 4, ranks=range(3), reports=reports)
        assert {rank: [batch.epoch for batch in batches] for rank, batches in following.items()} == {
            0: [1],
            1: [1],
            2: [1],
        }
        with pytest.raises(ServiceError, match="bad-rank"):
            client.batches(session, 0, reports={7: [(0, [1.0])]})
        with pytest.raises(ServiceError, match="too-large"):
            client.batches(session, 0, steps=4096, ranks=[0, 1])


class Older(httpx.HTTPTransport):
    """The service as it was before it had capabilities, a wait in choices, and names of rewinds."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, request.read()
        for name in (b"wait", b"request") if path.endswith(("/choices", "/rewind")) else ():
            body = body.replace(b'"%s": ' % name, b'"%s": ' % name.upper())
        if path == "/v1/capabilities":
            request.url = request.url.copy_with(path="/v1/nothing")
        asked = httpx.Request(request.method, request.url, headers=request.headers, content=body or None)
        asked.extensions = request.extensions
        return super().handle_request(asked)


@pytest.mark.parametrize("arrow", [True, False])
def test_an_older_service_is_asked_as_it_understands(url: str, arrow: bool) -> None:
    options = {"size": 8, "batch_size": 4, "parameters": {"joint": False, "filter_ratio": 0.5}}
    with Client(url, transport=Older(), patience=20) as client:
        session = client.create_session("jest", **options).id
        if arrow:
            assert len(client.choose(session, 0, scores=[1.0, 2.0, 3.0, 4.0]).indices) == 2
        else:
            with pytest.raises(ServiceError, match="not-sent"):
                client.choose(session, 0)
        with pytest.raises(ServiceError, match="bad-report.*has 3 rows"):
            client.choose(session, 1, scores=[1.0, 2.0, 3.0])
    with Client(url, transport=Older(), patience=20) as client:
        before = client.session(session).generation
        assert client.rewind(session, 0).generation == before + 1


def test_a_bad_body_is_not_taken_for_an_older_service(url: str) -> None:
    with Client(url, patience=20) as client:
        session = client.create_session("random", size=8, batch_size=4).id
        with pytest.raises(ServiceError, match="bad-body"):
            client.rewind(session, "three")  # type: ignore[arg-type]
        assert not client._requests.older
