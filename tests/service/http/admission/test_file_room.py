"""Checkpoints on their way: one owner does not take the disk that all share."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.access.tokens import issue_token
from curation.service.client import ARROW, Client, ServiceError
from curation.service.errors import Refusal
from curation.service.http.admission.file_room import FileRoom
from curation.service.store import Store

MIB = 1 << 20


def wait_until_empty(room: FileRoom) -> None:
    """A client has its answer a moment before the server is done with the file."""
    deadline = time.monotonic() + 20
    while room._held:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_owner_does_not_take_the_disk_of_all(live: Callable[..., Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store(url)
    tokens = [issue_token(store, name, frozenset({"select"}), owner=name)[1] for name in ("greedy", "honest")]
    store.close()
    server = live(store=url, owner_file_bytes=3 * MIB, body_seconds=20)
    room = server.app.state.service.file_room
    with Client(server.url, token=tokens[0], patience=0) as greedy, Client(server.url, token=tokens[1]) as honest:
        options: dict[str, Any] = {"size": 400_000, "batch_size": 1 << 18, "epochs": 2, "on_missing": "skip"}
        sessions = [client.create_session("infobatch", **options).id for client in (greedy, honest)]
        for client, session in zip((greedy, honest), sessions, strict=True):
            client.report(session, [(0, np.ones(len(client.step(session, 0).indices)))])
            client.step(session, 2)
        checkpoint = greedy.checkpoint(sessions[0])
        assert MIB < len(checkpoint) < 3 * MIB
        wait_until_empty(room)
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            head = f"POST /v1/sessions/import HTTP/1.1\r\nHost: localhost\r\nContent-Type: {ARROW}\r\n"
            head += f"Authorization: Bearer {tokens[0]}\r\nContent-Length: {4 * MIB}\r\n\r\n"
            slow.sendall(head.encode() + bytes(2 * MIB))
            while room._held["greedy"] < 2 * MIB:
                time.sleep(0.01)
            for act in (lambda: greedy.restore(checkpoint), lambda: greedy.checkpoint(sessions[0])):
                with pytest.raises(
                    ServiceError, match="quota: .*owner 'greedy' take .* bytes of this server"
                ) as refused:
                    act()
                assert refused.value.members["limit"] == "owner_file_bytes"
            copy = honest.restore(honest.checkpoint(sessions[1])).id
            assert honest.session(copy).open_epochs == 2
        wait_until_empty(room)
        assert greedy.restore(greedy.checkpoint(sessions[0])).open_epochs == 2
    headers = {"Content-Type": ARROW, "Authorization": f"Bearer {tokens[0]}"}
    answer = httpx.post(f"{server.url}/v1/sessions/import", content=bytes(4 * MIB), headers=headers)
    assert answer.json()["type"] == "urn:curation:problem:too-large"


def test_what_is_held_is_given_back_once() -> None:
    room = FileRoom(10)
    with room.holding("a") as one:
        one.add(6)
        other = room.holding("a")
        with pytest.raises(Refusal, match="take 6 bytes"):
            other.add(5)
        room.holding(None).add(10)
        one.release()
        other.add(5)
    other.release()
    assert room._held == {None: 10}
