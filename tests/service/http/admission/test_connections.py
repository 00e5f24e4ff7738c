"""What one peer can do to the server before any request of it is whole, over real sockets."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Part: "
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(live: Callable[..., Any]) -> Any:
    return live(head_seconds=1, idle_seconds=1, send_seconds=0.5)


@pytest.fixture
def dial(server: Any) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as open_ones:
        yield lambda: open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def feed(connection: socket.socket, piece: bytes, most: int) -> int:
    """Send a piece over and over; how many bytes the server let pass before it closed."""
    sent = 0
    try:
        while sent < most:
            sent += connection.send(piece)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\nX-Long: ", b"x" * 65536, b"431"),
        (b"GET /", b"x" * 65536, b"431"),
        (
            b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X-Behind: " + b"x" * 9999 + b"\r\n",
            b"",
        ),
        (b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 9999 + b"\r\nx\r\n", b""),
    ],
    ids=["headers", "one header", "url", "behind the body", "chunks"],
)
def test_a_head_without_end_is_refused_early(
    dial: Callable[[], socket.socket], start: bytes, piece: bytes, status: bytes
) -> None:
    connection = dial()
    connection.sendall(start)
    assert feed(connection, piece, 300 << 20) < 32 << 20  # what the system's buffers take
    assert status in answer(connection)[:16]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\n" + b"X-Header: x\r\n" * 101 + b"\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 30_000 + b"\r\n\r\n", 200),
    ],
    ids=["url", "headers", "bytes", "nonsense", "large"],
)
def test_a_head_is_answered_with_what_is_wrong(dial: Callable[[], socket.socket], request_: bytes, status: int) -> None:
    connection = dial()
    connection.sendall(request_)
    said = answer(connection)
    assert said.startswith(b"HTTP/1.1 %d " % status), said
    if status != 200:
        assert b"application/problem+json" in said
        assert b"urn:curation:problem:" in said


def test_a_request_may_be_larger_than_a_head(server: Any) -> None:
    body = b'{"step": 0, "reports": []}' + b" " * 60_000
    kind = {"Content-Type": "application/json"}
    made = {"id": "large", "method": "random", "size": 9, "batch_size": 3}
    httpx.post(f"{server.url}/v1/sessions", json=made).raise_for_status()
    for content in (body, iter([body[:100], *(body[at : at + 1] for at in range(100, 200)), body[200:]])):
        said = httpx.post(f"{server.url}/v1/sessions/large/steps", content=content, headers=kind)
        assert said.status_code == 200, said.text


def test_half_a_head_is_given_up(dial: Callable[[], socket.socket], server: Any) -> None:
    silent, half, later = dial(), dial(), dial()
    half.sendall(HALF)
    later.sendall(WHOLE)
    assert later.recv(1 << 16).startswith(b"HTTP/1.1 200")
    later.sendall(HALF)  # on a connection that had an answer
    start = time.monotonic()
    for connection in (silent, half, later):
        assert b" 408 " in answer(connection)[:16]
    assert time.monotonic() - start < 10
    assert 'curation_connections_refused_total{reason="late"}' in httpx.get(f"{server.url}/metrics").text


def test_a_thousand_half_requests_stop_nobody(live: Callable[..., Any]) -> None:
    server = live(head_seconds=60, max_connections=300)
    with ExitStack() as open_ones:
        for number in range(1000):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            open_ones.enter_context(connection).sendall(HALF)
            if number % 100 == 99:
                assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
        assert 'reason="displaced"' in httpx.get(f"{server.url}/metrics").text


def test_connections_of_one_address_are_bounded(live: Callable[..., Any]) -> None:
    server = live(max_peer_connections=3)
    body = (
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    with ExitStack() as open_ones:

        def dial(sent: bytes) -> socket.socket:
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            connection.sendall(sent)
            return connection

        half = [dial(HALF) for _ in range(3)]
        for one in half:  # each in work displaces the oldest half
            dial(body)
            assert answer(one) == b""
        said = answer(dial(b""))
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"max_peer_connections" in said
    for _ in range(100):
        if httpx.get(f"{server.url}/healthz").status_code == 200:
            break
        time.sleep(0.05)
    else:
        pytest.fail("those that closed still count")


def test_a_peer_that_does_not_read_is_dropped(dial: Callable[[], socket.socket]) -> None:
    connection = dial()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start, dropped = time.monotonic(), False
    while not dropped and time.monotonic() - start < 20:
        try:
            connection.sendall(request)
            time.sleep(0.05)
        except OSError:
            dropped = True
    assert dropped


def test_a_refused_body_is_not_read_for_long(dial: Callable[[], socket.socket]) -> None:
    connection = dial()
    connection.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    connection.sendall(b"Content-Length: 1073741824\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 413"
    assert feed(connection, b" " * (1 << 16), 1 << 30) < 64 << 20


STEP = b'{"step": 0}'
KINDS = [
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n",
    b"",
]


def step_of(session: str, more: bytes, *, chunked: bool = False) -> bytes:
    head = f"POST /v1/sessions/{session}/steps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % len(STEP)
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(STEP), STEP) if chunked else STEP
    return head.encode() + length + more + b"\r\n" + body


def statuses(connection: socket.socket, wanted: int) -> list[int]:
    """Statuses of so many answers with a body of JSON, but for the interim ones."""
    came, found = b"", list[int]()
    while len(found) < wanted:
        part = connection.recv(1 << 16)
        assert part, came
        came += part
        found = [int(one) for one in re.findall(rb"HTTP/1.1 (\d+) (?!Continue)", came)]
    return found


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("more", KINDS)
def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(
    dial: Callable[[], socket.socket], server: Any, more: bytes, chunked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = {"id": "upgrade", "method": "random", "size": 9, "batch_size": 3}
    httpx.post(f"{server.url}/v1/sessions", json=made).raise_for_status()
    request = step_of("upgrade", more, chunked=chunked)
    at_once, cut = dial(), dial()
    at_once.sendall(request + request + WHOLE)
    assert statuses(at_once, 3) == [200] * 3
    cut.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(request), 40):
        cut.sendall(request[at : at + 40])
        time.sleep(0.005)
    cut.sendall(WHOLE)
    assert statuses(cut, 2) == [200] * 2
    assert "pgrade" not in caplog.text


def test_what_follows_a_head_is_no_request_of_its_own(dial: Callable[[], socket.socket]) -> None:
    connection = dial()
    head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n"
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(WHOLE))
    time.sleep(0.1)
    connection.sendall(WHOLE)
    assert statuses(connection, 1) == [405]
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)
    connection.sendall(WHOLE)
    assert statuses(connection, 1) == [200]


def test_a_body_behind_another_request_has_its_time(
    dial: Callable[[], socket.socket], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.service.http.admission.connections._LINGER_SECONDS", 0.1)
    made = {"id": "behind", "method": "random", "size": 9, "batch_size": 3}
    httpx.post(f"{server.url}/v1/sessions", json=made).raise_for_status()
    connection, request = dial(), step_of("behind", b"")
    connection.sendall(request + request[:-4])
    assert statuses(connection, 1) == [200]
    time.sleep(0.5)
    connection.sendall(request[-4:])
    assert statuses(connection, 1) == [200]
