"""Checkpoints larger than any other body: streamed through files in and out, in little memory."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from curation.service.client import ARROW, AsyncClient, Client, ServiceError

MIB = 1 << 20


def grown(client: Client, size: int, batch_size: int) -> tuple[str, int]:
    """A session in its second epoch, and that one's first step."""
    session = client.create_session("infobatch", size=size, batch_size=batch_size, epochs=3, on_missing="skip").id
    batch = client.step(session, 0)
    client.report(session, [(0, np.cos(batch.indices))])
    return session, client.step(session, batch.epoch_end).step or 0


def test_one_larger_than_any_other_body_comes_back(live: Callable[..., Any], tmp_path: Path) -> None:
    server = live(max_body_bytes=MIB)
    file = tmp_path / "session.arrow"
    with Client(server.url, patience=0) as client:
        session, step = grown(client, 1_000_000, 1 << 17)
        client.save_checkpoint(session, file)
        assert file.stat().st_size > 3 * MIB
        assert file.read_bytes() == client.checkpoint(session)
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        copies = [client.restore(file).id, client.restore(file.read_bytes()).id]
        whole = client.step(session, step)
        for copy in copies:
            assert np.array_equal(client.step(copy, step).indices, whole.indices)
        with pytest.raises(ServiceError, match="not-found"):
            client.save_checkpoint("nobody", tmp_path / "nobody")

    async def again() -> None:
        async with AsyncClient(server.url, patience=0) as client:
            await client.save_checkpoint(session, tmp_path / "again.arrow")
            copy = await client.restore(tmp_path / "again.arrow")
            assert (await client.step(copy.id, step)).epoch == 1

    asyncio.run(again())


def test_checkpoints_have_a_limit_of_their_own(
    live: Callable[..., Any], assert_problem: Callable[[httpx.Response, int, str], Any]
) -> None:
    server = live(max_body_bytes=4 * MIB, max_checkpoint_bytes=2 * MIB)
    with httpx.Client(base_url=server.url) as http:
        answer = http.post("/v1/sessions/import", content=bytes(3 * MIB), headers={"Content-Type": ARROW})
        assert "max_checkpoint_bytes" in assert_problem(answer, 413, "too-large")["detail"]
        answer = http.post("/v1/sessions", content=bytes(3 * MIB), headers={"Content-Type": ARROW})
        assert answer.status_code == 422


def test_a_full_disk_is_said(
    live: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    assert_problem: Callable[[httpx.Response, int, str], Any],
) -> None:
    server = live()
    with Client(server.url, patience=0) as client:
        session, _ = grown(client, 1000, 100)
        checkpoint = client.checkpoint(session)
    for name in ("TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(f"curation.service.http.files.{name}", partial(Path("/dev/full").open, "wb"))
    paths = f"{server.url}/v1/sessions/{session}/checkpoint", f"{server.url}/v1/sessions/import"
    answers = httpx.get(paths[0]), httpx.post(paths[1], content=checkpoint, headers={"Content-Type": ARROW})
    for answer in answers:
        assert "TMPDIR" in assert_problem(answer, 503, "store-unavailable")["detail"]


@contextmanager
def anonymous_peak(process: psutil.Process) -> Iterator[list[int]]:
    """The most anonymous memory of a process, in bytes over what it had before; pages of files are not counted."""

    def measure() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    start, peak, stop = measure(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], measure() - start)
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_checkpoint_of_10_to_the_8_takes_little_memory(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    process = psutil.Process(server.process.pid)
    with Client(server.url, timeout=300) as client:
        session, step = grown(client, 100_000_000, 1 << 20)
        with anonymous_peak(process) as export:
            client.save_checkpoint(session, tmp_path / "session.arrow")
        assert (tmp_path / "session.arrow").stat().st_size > 400_000_000
        assert export[0] < 100 * MIB
        with anonymous_peak(process) as imported:
            copy = client.restore(tmp_path / "session.arrow").id
        assert imported[0] < 1200 * MIB, "what opening its epoch takes, and no copy of it"
        assert np.array_equal(client.step(copy, step).indices, client.step(session, step).indices)
