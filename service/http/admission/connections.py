"""Connections: heads of bounded size that come in bounded time, answers that are taken, and a bounded number of both.

uvicorn bounds none of these with its fast parser: one peer could send a head without end, or hold a thousand
connections with half of one. What is bounded here is so before the application hears of a request.
"""

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from curation.service.errors import Refusal
from curation.service.http.admission.parser import Parser
from curation.service.http.problems import KINDS, MEDIA_TYPE
from curation.service.logs import logger
from curation.service.settings import Settings

MAX_HEADERS = 100
MAX_URL_BYTES = 8 << 10
_LINGER_SECONDS = 2
_LINGER_BYTES = 4 << 20
"""How much of a body that was refused is read past, so that its sender comes to read the answer."""
_OWN_FILES = 256
"""Descriptors for what are not connections: the store, logs, worker processes, datasets."""


class Connections:
    """All connections of one server.

    Args:
        settings: their limits.
        files: how many descriptors the process may have.
    """

    def __init__(self, settings: Settings, files: int) -> None:
        self.settings = settings
        self.most = min(settings.max_connections, max(1, files - _OWN_FILES))
        self.open = 0
        self.refused: Counter[str] = Counter()
        """By reason: how many were refused, or closed before an answer."""
        self._peers: dict[bytes | str, Peer] = {}

    def enter(self, address: bytes | str) -> "Peer | str":
        """Take in a connection: its peer, or why not. Where there are too many, one without a request makes room: of
        the same peer, or of the one that has most."""
        peer = self._peers.get(address) or Peer(address)
        if peer.open >= self.settings.max_peer_connections:
            if not self._displace(peer):
                return "peer"
        elif self.open >= self.most and not any(
            map(self._displace, sorted(self._peers.values(), key=lambda one: -one.open))
        ):
            return "all"
        self._peers[address] = peer
        self.open += 1
        peer.open += 1
        return peer

    def leave(self, peer: "Peer") -> None:
        """Forget a connection that was taken in."""
        self.open -= 1
        peer.open -= 1
        if not peer.open:
            del self._peers[peer.address]

    def _displace(self, peer: "Peer") -> bool:
        if not peer.unused:
            return False
        self.refused["displaced"] += 1
        next(iter(peer.unused)).drop()
        return True


class Peer:
    """An address, and the connections it has."""

    def __init__(self, address: bytes | str) -> None:
        self.address = address
        self.open = 0
        self.unused: dict[Connection, None] = {}
        """Those without a request in work, the one that has been so for longest first."""


class Connection(HttpToolsProtocol):
    """One connection: uvicorn's, within limits."""

    def __init__(self, *arguments: Any, connections: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.parser = cast(Any, Parser(self))
        self._connections = connections
        self._limits = connections.settings
        self._in_head = True
        self._overhead = 0  # bytes of the present request that are not its body
        self._body_bytes = 0
        self._refusal: Refusal | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._linger_timer: asyncio.TimerHandle | None = None
        self._passed = 0
        self._peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = self._connections.enter(_address(self.client))
        if isinstance(peer, str):
            self._refuse(peer, Refusal("too-many-connections", _FULL[peer], retry_after=1))
            return
        self._peer = peer
        peer.unused[self] = None
        self._head_timer = self.loop.call_later(self._limits.head_seconds, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        for timer in (self._head_timer, self._send_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > self._limits.max_head_bytes and not self.transport.is_closing():
            self._check_overhead()
        if self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_seconds, self._head_late)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes behind a body in chunks is nobody's header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if len(self.headers) > MAX_HEADERS:
            self._reject("head", Refusal("head-too-large", f"the request has more than {MAX_HEADERS} headers"))
        if len(self.url) > MAX_URL_BYTES:
            self._reject("url", Refusal("url-too-long", f"the URL is longer than {MAX_URL_BYTES} bytes"))
        if self._overhead > self._limits.max_head_bytes:
            # All that has come may be more than the head.
            head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head > self._limits.max_head_bytes:
                self._reject("head", self._large_head())
            self._overhead = 0
        if self._peer is not None:
            self._peer.unused.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        self._body_bytes += len(body)
        if self._linger_timer is not None:
            self._passed += len(body)
            if self._passed > _LINGER_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._overhead = self._body_bytes = 0
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        # The newest request may be one that came behind this one, and has yet to be answered.
        if self.cycle.response_complete and self.cycle.more_body and self._linger_timer is None:
            self._passed = 0
            self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        if self._peer is not None and not self.pipeline:
            self._peer.unused[self] = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._watch_sending()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        refusal = self._refusal or Refusal("bad-request", msg)
        self._refuse("bad-request", refusal)

    def drop(self) -> None:
        """Close it now, to make room for another one."""
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        if self._peer is not None:
            self._peer.unused.pop(self, None)
            self._connections.leave(self._peer)
            self._peer = None

    def _check_overhead(self) -> None:
        if self._in_head:
            self._refuse("head", self._large_head())
        elif self._overhead > self._limits.max_head_bytes + self._body_bytes:
            self._refuse("head", Refusal("bad-request", "the body's chunks are mostly not body"))

    def _large_head(self) -> Refusal:
        most = self._limits.max_head_bytes
        return Refusal("head-too-large", f"the request's head is larger than {most} bytes, the limit (max_head_bytes)")

    def _reject(self, reason: str, refusal: Refusal) -> None:
        """Within the parser, which then gives up."""
        self._connections.refused[reason] += 1
        self._refusal = refusal
        raise ValueError(refusal.detail)

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            seconds = self._limits.head_seconds
            self._refuse("late", Refusal("timeout", f"the request's head did not arrive within {seconds:g} s"))

    def _refuse(self, reason: str, refusal: Refusal) -> None:
        """Answer with a problem document, and close."""
        if self._refusal is None:
            self._connections.refused[reason] += 1
        self._refusal = refusal
        self.transport.write(_document(refusal))
        self.transport.close()
        self._watch_sending()

    def _watch_sending(self) -> None:
        """Look at intervals whether the peer takes what it is sent; one that takes nothing is dropped."""
        waiting = self.transport.get_write_buffer_size()
        if waiting and self._send_timer is None:
            self._unsent = waiting
            self._send_timer = self.loop.call_later(self._limits.send_seconds, self._send_late)

    def _send_late(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size() >= self._unsent:
            self._connections.refused["unread"] += 1
            self.transport.abort()
        else:
            self._watch_sending()


class _Counts(Collector):
    """Metrics of the connections, read at each scrape."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("curation_connections_open", "Connections", value=self._connections.open)
        refused = CounterMetricFamily(
            "curation_connections_refused",
            "Connections that were refused, or closed before an answer",
            labels=("reason",),
        )
        for reason, count in sorted(self._connections.refused.items()):
            refused.add_metric((reason,), count)
        yield refused


_FULL = {
    "peer": "this address has as many connections as the server allows one (max_peer_connections): close some",
    "all": "the server has as many connections as it can, all of them busy (max_connections): try again",
}


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration: the app behind connections with this server's limits."""
    connections = Connections(settings, raise_file_limit(settings.max_connections + _OWN_FILES))
    app.state.service.metrics.registry.register(_Counts(connections))
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, connections=connections)),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        server_header=False,
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def raise_file_limit(wanted: int) -> int:
    """Let this process have so many descriptors, or as many as the system lets it; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        most = wanted if soft == resource.RLIM_INFINITY else soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        logger.warning(
            "this process may have %d descriptors, and needs %d for max_connections: raise its limit (ulimit -n)",
            most,
            wanted,
        )
    return most


def _address(client: tuple[str, int] | None) -> bytes | str:
    """What a peer's connections are counted by: its address, of IPv6 the network of 64 bits that one has at home."""
    if client is None:
        return ""
    if ":" not in client[0]:
        return client[0]
    return ip_address(client[0].partition("%")[0]).packed[:8]


def _document(refusal: Refusal) -> bytes:
    """The whole answer, written where there is no request to answer yet."""
    status, title = KINDS[refusal.kind]
    kind = f"urn:curation:problem:{refusal.kind}"
    body = json.dumps({"type": kind, "title": title, "status": status, "detail": refusal.detail}).encode()
    retry = "" if refusal.retry_after is None else f"retry-after: {round(refusal.retry_after)}\r\n"
    head = (
        f"HTTP/1.1 {status} {title}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body
