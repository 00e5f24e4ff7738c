"""Arrow bodies that nobody would send, to a real server process: it lives, answers in time, and takes no memory.

Real bodies of every route that takes Arrow are changed as their format suggests: numbers in the flatbuffers, sizes in
front of compressed buffers, whole messages, the JSON in the metadata, plain bytes. For 8 s, with ``--slow`` for 60;
``CURATION_FUZZ_SECONDS`` says otherwise, ``CURATION_FUZZ_SEED`` with which random numbers (``make fuzz``). A body that
does harm is added to ``corpus.jsonl`` beside this file, which is replayed here from then on.
"""

import base64
import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest

from curation.service.arrow.flatbuffers import find_field, follow
from curation.service.client import ARROW, Client

SECONDS = os.environ.get("CURATION_FUZZ_SECONDS")
SEED = int(os.environ.get("CURATION_FUZZ_SEED", "0"))
CORPUS = Path(__file__).with_name("corpus.jsonl")
MOST_SECONDS = 20
MOST_GROWTH = 400 << 20
CODECS = (None, "lz4", "zstd")
NUMBERS = (0, 1, 2, 7, 8, 63, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (b"null", b"true", b"-1", b"1e9", b"[[[[", b'"\\u0000"', b"9" * 25, b"{}", b"NaN", b"\xff\xfe")


@dataclass(frozen=True)
class Case:
    """A body, and where it is sent."""

    name: str
    path: str
    body: bytes


def stream(table: pa.Table, codec: str | None = None, **request: Any) -> bytes:
    if request:
        table = table.replace_schema_metadata({"request": json.dumps(request)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def matrix(rows: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4 * rows, np.float32)), 4)


def real_bodies(client: Client) -> list[Case]:
    """What clients send to the sessions ``fuzz`` and ``pairs``, which are made here, and to all other routes."""
    both: dict[str, Any] = {"size": 64, "batch_size": 8, "epochs": 3}
    client.create_session("infobatch", id="fuzz", world_size=2, on_missing="skip", **both)
    client.create_session("jest", id="pairs", world_size=2, parameters={"filter_ratio": 0.5, "chunks": 2}, **both)
    client.create_session("acquisition", id="drawn", parameters={"k": 16, "once": True}, **both)
    for session, steps in (("fuzz", 6), ("drawn", 3)):
        for step in range(steps):
            losses = np.ones(len(client.step(session, step).indices))
            client.report(session, [(step, losses)])
    losses = pa.array([np.ones(8, np.float32)] * 3, pa.list_(pa.float32()))
    reports = pa.table({"step": [0, 1, 2], "losses": losses})
    both_ranks = pa.table({"report_ranks": [0, 1, 0], "report_steps": [0, 1, 2], "losses": losses})
    sides = {name: matrix(8) for name in ("learner_a", "learner_b", "reference_a", "reference_b")}
    plan = pa.table({"indices": pa.array([[0, 1, 2], [3, 4], [5]], pa.list_(pa.int64()))})
    scores, vectors = pa.table({"scores": np.arange(64.0)}), pa.table({"queries": matrix(8), "positives": matrix(8)})
    cases = []
    for codec in CODECS:
        tables: dict[str, tuple[pa.Table, dict[str, Any]]] = {
            "/v1/sessions": (plan, {"method": "plan", "size": 6, "batch_size": 3, "epochs": 2}),
            "/v1/sessions?": (scores, {"method": "acquisition", "size": 64, "batch_size": 8}),
            "/v1/sessions/fuzz/batches": (both_ranks, {"ranks": [0, 1], "step": 6, "steps": 2}),
            "/v1/sessions/pairs/choices": (pa.table(sides), {"rank": 0, "step": 0}),
            "/v1/sessions/pairs/choices?": (pa.table({"scores": np.ones(8)}), {"rank": 1, "step": 0}),
            "/v1/select/acquire": (scores, {"k": 3, "seed": 1}),
            "/v1/select/zipfit": (pa.table({"texts": ["def f", "a cat", "x"]}), {"targets": ["def g"], "k": 2}),
            "/v1/select/jest": (pa.table(sides), {"filter_ratio": 0.5, "chunks": 2}),
            "/v1/select/b3": (vectors, {"batch_size": 4, "cluster_size": 2, "ranks": [1, 4]}),
        }
        cases += [Case(path, path, stream(table, codec, **request)) for path, (table, request) in tables.items()]
        for metadata in ({"rank": "0", "step": "7"}, {"rank": "1"}):
            body = stream(reports.replace_schema_metadata(metadata), codec)
            cases.append(Case("steps", "/v1/sessions/fuzz/steps", body))
        for session in ("fuzz", "pairs", "drawn"):
            checkpoint = pa.ipc.open_stream(client.checkpoint(session)).read_all()
            cases.append(Case("import", "/v1/sessions/import", stream(checkpoint, codec)))
            rows = checkpoint.to_pylist()
            for row in rows:
                if row["kind"] == "state":
                    row["data"] = stream(pa.ipc.open_stream(row["data"]).read_all(), codec)
            again = pa.Table.from_pylist(rows, schema=checkpoint.schema)
            cases.append(Case("import", "/v1/sessions/import", stream(again)))
    return cases


def messages_of(body: bytes) -> list[tuple[bytes, bytes]]:
    """The messages of a stream: metadata and body of each."""
    messages, at = [], 0
    while at + 8 <= len(body):
        mark, size = struct.unpack_from("<Ii", body, at)
        if mark != 0xFFFFFFFF or size <= 0:
            break
        meta = body[at + 8 : at + 8 + size]
        field = find_field(memoryview(meta), follow(memoryview(meta), 0), 3)
        length = 0 if field is None else struct.unpack_from("<q", meta, field)[0]
        at += 8 + size
        messages.append((meta, body[at : at + length]))
        at += length
    return messages


def joined(messages: list[tuple[bytes, bytes]], end: bytes = b"\xff\xff\xff\xff\0\0\0\0") -> bytes:
    parts = [struct.pack("<Ii", 0xFFFFFFFF, len(meta)) + meta + body for meta, body in messages]
    return b"".join(parts) + end


class Mutator:
    """Changes bodies, the same way for the same seed."""

    def __init__(self, cases: list[Case], seed: int) -> None:
        self._cases, self._random = cases, random.Random(seed)
        self._ways: list[Callable[[list[tuple[bytes, bytes]]], bytes]] = [
            *(self._number_in_metadata, self._number_in_metadata, self._number_in_metadata),
            *(self._number_in_body, self._bytes, self._bytes, self._messages, self._word, self._splice, self._cut),
        ]

    def __iter__(self) -> Iterator[Case]:
        while True:
            case = self._random.choice(self._cases)
            body = case.body
            for _ in range(self._random.choice((1, 1, 1, 2, 4))):
                body = self._changed(body)
            yield Case(case.name, case.path, body)

    def _changed(self, body: bytes) -> bytes:
        try:
            messages = messages_of(body)
        except struct.error:
            messages = []
        return self._random.choice(self._ways)(messages) if messages else self._flip(body)

    def _pick(self, messages: list[tuple[bytes, bytes]], part: int) -> tuple[int, bytearray]:
        number = self._random.randrange(len(messages))
        return number, bytearray(messages[number][part])

    def _number(self, data: bytearray, width: int) -> None:
        if len(data) < width:
            return
        at = self._random.randrange(0, len(data) - width + 1, 4)
        low = int.from_bytes(data[at : at + width], "little")
        value = self._random.choice((*NUMBERS, low + 1, low - 1, low * 2, -low, -8))
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")

    def _number_in_metadata(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        number, meta = self._pick(messages, 0)
        self._number(meta, self._random.choice((1, 2, 4, 8)))
        messages[number] = (bytes(meta), messages[number][1])
        return joined(messages)

    def _number_in_body(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        number, body = self._pick(messages, 1)
        self._number(body, self._random.choice((4, 8)))
        messages[number] = (messages[number][0], bytes(body))
        return joined(messages)

    def _bytes(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        return self._flip(joined(messages))

    def _flip(self, body: bytes) -> bytes:
        changed = bytearray(body)
        for _ in range(self._random.randint(1, 4)):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _messages(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        number = self._random.randrange(len(messages))
        match self._random.randrange(4):
            case 0:
                messages.insert(self._random.randrange(len(messages) + 1), messages[number])
            case 1:
                del messages[number]
            case 2:
                self._random.shuffle(messages)
            case 3:
                messages[number:number] = [messages[number]] * self._random.choice((2, 50, 2000))
        return joined(messages)

    def _word(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        number, meta = self._pick(messages, 0)
        start = meta.find(b"{")
        at = self._random.randrange(start if start >= 0 else 0, len(meta))
        word = self._random.choice(WORDS)
        meta[at : at + len(word)] = word
        messages[number] = (bytes(meta[: len(messages[number][0])]), messages[number][1])
        return joined(messages)

    def _splice(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        other = messages_of(self._random.choice(self._cases).body)
        cut = self._random.randrange(len(messages) + 1)
        if self._random.random() < 0.5:
            return joined(messages[:cut] + other[self._random.randrange(len(other) + 1) :])
        return joined([(meta, body) for (meta, _), (_, body) in zip(messages, other, strict=False)])

    def _cut(self, messages: list[tuple[bytes, bytes]]) -> bytes:
        body = joined(messages)
        return body[: self._random.randrange(len(body))]


class Target:
    """A server process, and what it must never do."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._memory = psutil.Process(server.process.pid)
        self._http = httpx.Client(base_url=server.url, timeout=2 * MOST_SECONDS)
        self.sent: dict[int, int] = {}
        self._refused_large = False

    def close(self) -> None:
        self._http.close()

    def _post(self, case: Case) -> httpx.Response:
        return self._http.post(case.path, content=case.body, headers={"Content-Type": ARROW})

    @property
    def _log(self) -> str:
        return f"the log ends with {self._server.log.read_text()[-3000:]}"

    def settle(self) -> None:
        """What it takes by now is what it may take."""
        self._start = self._memory.memory_info().rss

    def send(self, case: Case) -> str | None:
        """What is wrong with the server's answer; None where nothing is."""
        start = time.monotonic()
        try:
            try:
                answer = self._post(case)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not self._refused_large:
                    raise
                answer = self._post(case)
        except httpx.TransportError as error:
            return f"{error!r}; exit status {self._server.process.poll()}; {self._log}"
        self._refused_large = answer.status_code == 413  # more of it than the server reads past ends the connection
        seconds = time.monotonic() - start
        self.sent[answer.status_code] = self.sent.get(answer.status_code, 0) + 1
        if answer.status_code >= 500 and answer.status_code != 503:
            return f"{answer.text}; {self._log}"
        if seconds > MOST_SECONDS:
            return f"{seconds:.1f} s"
        growth = self._memory.memory_info().rss - self._start
        return f"{growth >> 20} MiB" if growth > MOST_GROWTH else None


@pytest.fixture
def target(serve: Callable[..., Any]) -> Iterator[tuple[Target, list[Case]]]:
    limits = {"max_body_bytes": 4 << 20, "max_checkpoint_bytes": 4 << 20, "max_reports": 256, "request_seconds": 15}
    sizes = {"resident_bytes": 64 << 20, "max_pairs": 256, "max_texts": 100, "max_text_pairs": 1000, "max_rows": 5000}
    server = serve(**{name: str(value) for name, value in (limits | sizes).items()}, access_log="false")
    with Client(server.url, patience=20) as client:
        cases = real_bodies(client)
    target = Target(server)
    for case in cases:  # all methods are imported now
        target.settle()
        assert target.send(case) is None, case.path
    target.settle()
    yield target, cases
    target.close()
    assert server.stop() in (0, -15)


def corpus() -> list[Case]:
    lines = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    return [Case(line["name"], line["path"], base64.b64decode(line["body"])) for line in lines]


@pytest.mark.timeout(float(SECONDS or 60) + 300)
def test_no_body_does_harm(target: tuple[Target, list[Case]], request: pytest.FixtureRequest) -> None:
    server, cases = target
    seconds = float(SECONDS or (60 if request.config.getoption("--slow") else 8))
    for case in corpus():
        assert server.send(case) is None, case.name
    end, sent = time.monotonic() + seconds, 0
    for case in Mutator(cases + corpus(), SEED):
        harm = server.send(case)
        if harm is not None:
            name = f"{case.name}, seed {SEED}, body {sent}"
            with CORPUS.open("a") as file:
                body = base64.b64encode(case.body).decode()
                file.write(json.dumps({"name": name, "path": case.path, "body": body}) + "\n")
            pytest.fail(f"{name}: {harm}\nThe body was added to {CORPUS}: keep it there")
        sent += 1
        if time.monotonic() > end:
            break
    print(f"seed {SEED}: {sent} bodies in {seconds:g} s, by status {dict(sorted(server.sent.items()))}")
    taken = sum(count for status, count in server.sent.items() if status < 300)
    assert server.sent.get(422, 0) > sent / 10
    assert taken > sent / 100, "what is changed must sometimes still be a body"
