"""Checkpoints out of strange hands: each is refused, or its session is one that could have come to be."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.plan import BatchPlan
from curation.service.client import ARROW, Client, ServiceError

SPECS: dict[str, dict[str, Any]] = {
    "infobatch": {"epochs": 4, "on_missing": "skip"},
    "acquisition": {"epochs": 4, "parameters": {"k": 12, "once": True}},
    "jest": {"epochs": 2, "parameters": {"filter_ratio": 0.5, "chunks": 2, "joint": False}},
    "plan": {"epochs": 2, "plan": BatchPlan.of_size(np.arange(40), 10)},
}
STEPS = {"infobatch": 11, "acquisition": 5, "plan": 2}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def exported(url: str) -> dict[str, bytes]:
    """A session of each method that is in its third epoch where it has one, as a checkpoint."""
    with Client(url, patience=0) as client:
        return {method: client.checkpoint(_trained(client, method)) for method in SPECS}


def _trained(client: Client, method: str) -> str:
    session = client.create_session(method, size=40, batch_size=4, world_size=2, seed=3, **SPECS[method])
    if method == "jest":
        for step in range(2):
            for rank in (0, 1):
                scores = np.arange(4.0) + rank
                with nullcontext() if rank else pytest.raises(ServiceError, match="missing-reports"):
                    client.choose(session.id, step, scores=scores, rank=rank)
        client.report(session.id, [(0, np.ones(2))])
        return session.id
    _walk(client, session.id, STEPS[method], skip=4 if method == "infobatch" else None)
    return session.id


def _walk(client: Client, session: str, steps: int, first: int = 0, skip: int | None = None) -> None:
    """Both ranks go on for some steps, and report; but for ``skip``."""
    info = client.session(session)
    for step in range(first, first + steps):
        for rank in (0, 1):
            batch = client.step(session, step, rank=rank)
            assert len(batch.indices) == len(batch.weights)
            assert all(0 <= index < info.size for index in batch.indices)
            if step != skip and info.raw["stateful"]:
                client.report(session, [(step, 0.1 + np.cos(batch.indices) ** 2)], rank=rank)


def rows_of(checkpoint: bytes) -> tuple[dict[bytes, bytes], list[Row]]:
    table = pa.ipc.open_stream(checkpoint).read_all()
    return table.schema.metadata, table.to_pylist()


def packed(metadata: dict[bytes, bytes], rows: list[Row], compression: str | None = None) -> bytes:
    kinds = {"kind": pa.string(), "number": pa.int64(), "rank": pa.int64(), "data": pa.large_binary()}
    schema = pa.schema(list(kinds.items()), metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return bytes(sink.getvalue())


@pytest.fixture
def send(http: httpx.Client) -> Callable[[bytes], httpx.Response]:
    def post(body: bytes) -> httpx.Response:
        return http.post("/v1/sessions/import", content=body, headers={"Content-Type": ARROW})

    return post


@pytest.mark.parametrize("method", SPECS)
def test_a_checkpoint_is_what_it_was(method: str, exported: dict[str, bytes], client: Client) -> None:
    copy = client.restore(exported[method])
    assert rows_of(client.checkpoint(copy.id)) == rows_of(exported[method])
    _walk(client, copy.id, 2, first=copy.open_steps - 2)


def test_a_checkpoint_of_an_older_release_is_read(client: Client, send: Callable[[bytes], httpx.Response]) -> None:
    """It has a state for a first epoch, too: what every session begins with."""
    session = client.create_session("infobatch", size=40, batch_size=4, epochs=3).id
    first = client.step(session, 0)
    metadata, rows = rows_of(client.checkpoint(session))
    start = stream({"scores": scores([np.nan] * 40)})
    rows.insert(1, {"kind": "state", "number": 0, "rank": 0, "data": start})
    answer = send(packed({**metadata, b"format": b"1"}, rows))
    assert answer.status_code == 201, answer.text
    assert np.array_equal(client.step(answer.json()["id"], 0).indices, first.indices)


def json_cell(lines: list[Row], epoch: int, **changes: Any) -> None:
    row = next(row for row in lines if row["kind"] == "epoch" and row["number"] == epoch)
    row["data"] = json.dumps(json.loads(row["data"]) | changes).encode()


def stream(columns: dict[str, Any], times: int = 1) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(times):
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def scores(values: Any) -> pa.Array:
    return pa.array([np.asarray(values, np.float32)], pa.large_list(pa.float32()))


def cell(lines: list[Row], part: str, **changes: Any) -> None:
    next(row for row in lines if row["kind"] == part).update(changes)


def double(rows: list[Row], kind: str) -> None:
    rows.append(next(row for row in rows if row["kind"] == kind))


DEEP = b"[" * 100_000
FALSE: dict[str, tuple[str, Callable[[dict[bytes, bytes], list[Row]], Any]]] = {
    "rows past the candidates": ("infobatch", lambda m, r: json_cell(r, 0, rows=10**9)),
    "rows of the present epoch": ("infobatch", lambda m, r: json_cell(r, 2, rows=39)),
    "rows below none": ("infobatch", lambda m, r: json_cell(r, 2, rows=-5)),
    "rows that are text": ("infobatch", lambda m, r: json_cell(r, 2, rows="32")),
    "reweighted as text": ("infobatch", lambda m, r: json_cell(r, 2, reweighted="7")),
    "reweighted of nothing": ("infobatch", lambda m, r: json_cell(r, 2, reweighted=3)),
    "another first step": ("infobatch", lambda m, r: json_cell(r, 2, first_step=0)),
    "a surprise": ("infobatch", lambda m, r: json_cell(r, 2, surprise=0)),
    "missing out of its epoch": ("infobatch", lambda m, r: json_cell(r, 1, missing=[[0, 5]])),
    "missing of another rank": ("infobatch", lambda m, r: json_cell(r, 1, missing=[[2, 4]])),
    "missing twice": ("infobatch", lambda m, r: json_cell(r, 1, missing=[[0, 4], [0, 4]])),
    "missing before the first": ("infobatch", lambda m, r: json_cell(r, 0, missing=[[0, 0]])),
    "missing that is no pair": ("infobatch", lambda m, r: json_cell(r, 1, missing=[[0]])),
    "missing beyond numbers": ("infobatch", lambda m, r: json_cell(r, 1, missing=[[0, 2**70]])),
    "a deep record": ("infobatch", lambda m, r: cell(r, "epoch", data=DEEP)),
    "a deep segment": ("infobatch", lambda m, r: r.insert(0, line("segment", DEEP))),
    "a segment of text": ("infobatch", lambda m, r: r.insert(0, line("segment", segment(steps="1")))),
    "a segment beyond numbers": ("infobatch", lambda m, r: r.insert(0, line("segment", segment(steps=2**70)))),
    "a segment of rows that are not": ("infobatch", lambda m, r: r.insert(0, line("segment", segment(left=[[0, 99]])))),
    "an epoch too many": ("infobatch", lambda m, r: cell(r, "epoch", number=7)),
    "a null kind": ("infobatch", lambda m, r: r[0].update(kind=None)),
    "a null cell": ("infobatch", lambda m, r: r[-1].update(data=None)),
    "an unknown kind": ("infobatch", lambda m, r: cell(r, "report", kind="surprise")),
    "no state": ("infobatch", lambda m, r: r.remove(next(row for row in r if row["kind"] == "state"))),
    "two states": ("infobatch", lambda m, r: double(r, "state")),
    "a state of another epoch": ("infobatch", lambda m, r: cell(r, "state", number=1)),
    "a state without rows": ("infobatch", lambda m, r: cell(r, "state", data=stream({"scores": scores([0])}, 0))),
    "a state twice": ("infobatch", lambda m, r: cell(r, "state", data=stream({"scores": scores([0] * 40)}, 2))),
    "a short state": ("infobatch", lambda m, r: cell(r, "state", data=stream({"scores": scores([0] * 39)}))),
    "an infinite state": ("infobatch", lambda m, r: cell(r, "state", data=stream({"scores": scores([np.inf] * 40)}))),
    "a state of nulls": (
        "infobatch",
        lambda m, r: cell(r, "state", data=stream({"scores": pa.array([None], pa.large_list(pa.float32()))})),
    ),
    "a state of numbers": ("infobatch", lambda m, r: cell(r, "state", data=stream({"scores": pa.array([0.0])}))),
    "drawn before": (
        "acquisition",
        lambda m, r: cell(
            r,
            "state",
            data=stream(
                {"scores": scores([1] * 40), "drawn": pa.array([[0] * 40], pa.large_list(pa.uint8()))},
            ),
        ),
    ),
    "a report twice": ("infobatch", lambda m, r: double(r, "report")),
    "a report of an earlier epoch": ("infobatch", lambda m, r: cell(r, "report", number=0)),
    "a report of a later epoch": ("infobatch", lambda m, r: cell(r, "report", number=10**9)),
    "a report of another rank": ("infobatch", lambda m, r: cell(r, "report", rank=-1)),
    "a report of three bytes": ("infobatch", lambda m, r: cell(r, "report", data=b"abc")),
    "a table": ("infobatch", lambda m, r: r.append({"kind": "table:plan", "number": 0, "rank": 0, "data": b""})),
    "no dataset": ("infobatch", lambda m, r: spec(m, dataset="nowhere")),
    "another size of dataset": ("infobatch", lambda m, r: spec(m, dataset="good")),
    "a size beyond numbers": ("infobatch", lambda m, r: m.update({b"size": b"9223372036854775808"})),
    "a size of text": ("infobatch", lambda m, r: m.update({b"size": b"4_0"})),
    "a deep spec": ("infobatch", lambda m, r: m.update({b"spec": DEEP})),
    "a spec of lists": ("infobatch", lambda m, r: m.update({b"spec": b"[]"})),
    "no spec": ("infobatch", lambda m, r: m.pop(b"spec")),
    "numbers as text": ("infobatch", lambda m, r: spec(m, batch_size="4")),
    "a choice twice": ("jest", lambda m, r: double(r, "choice")),
    "a choice of the second epoch": ("jest", lambda m, r: cell(r, "choice", number=5)),
    "a choice past the end": ("jest", lambda m, r: cell(r, "choice", number=2**62)),
    "a choice of words": ("jest", lambda m, r: cell(r, "choice", data=stream({"positions": pa.array(["a"])}))),
    "a choice of too many": (
        "jest",
        lambda m, r: cell(r, "choice", data=stream({"positions": np.arange(9, dtype=np.int32)})),
    ),
    "an epoch of jest": (
        "jest",
        lambda m, r: r.append({"kind": "epoch", "number": 0, "rank": 0, "data": b'{"first_step":0}'}),
    ),
    "a report of a plan": (
        "plan",
        lambda m, r: r.append({"kind": "report", "number": 0, "rank": 0, "data": bytes(4)}),
    ),
}


def line(kind: str, data: bytes) -> Row:
    return {"kind": kind, "number": 10, "rank": 2, "data": data}


def segment(**changes: Any) -> bytes:
    return json.dumps({"steps": 1, "world_size": 2, "left": [[0, 8]]} | changes).encode()


def spec(metadata: dict[bytes, bytes], **changes: Any) -> None:
    metadata[b"spec"] = json.dumps(json.loads(metadata[b"spec"]) | changes).encode()


@pytest.mark.parametrize("name", FALSE)
def test_a_false_checkpoint_is_refused(
    name: str,
    exported: dict[str, bytes],
    send: Callable[[bytes], httpx.Response],
    client: Client,
) -> None:
    method, change = FALSE[name]
    metadata, rows = rows_of(exported[method])
    metadata = dict(metadata)
    change(metadata, rows)
    before = len(list(client.sessions()))
    answer = send(packed(metadata, rows))
    assert answer.status_code in (413, 422), answer.text
    assert len(list(client.sessions())) == before


def test_parts_that_are_compressed_are_refused(
    exported: dict[str, bytes], send: Callable[[bytes], httpx.Response]
) -> None:
    metadata, rows = rows_of(exported["infobatch"])
    assert send(packed(metadata, rows, "zstd")).status_code == 201
    rows[-1]["data"] = bytes(2 << 20)
    body = packed(metadata, rows, "zstd")
    assert len(body) < 1 << 16
    assert send(body).status_code == 413
    sink = pa.BufferOutputStream()
    state = pa.record_batch({"scores": scores([0] * 40)})
    with pa.ipc.new_stream(sink, state.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(state)
    cell(rows, "state", data=bytes(sink.getvalue()))
    rows[-1]["data"] = bytes(4)
    assert send(packed(metadata, rows)).status_code in (413, 422)


def mutations(rows: list[Row], rng: np.random.Generator) -> Iterator[list[Row]]:
    """The rows, with a cell changed, a row gone, twice, or elsewhere."""
    kinds = [row["kind"] for row in rows]
    while True:
        changed = [dict(row) for row in rows]
        row = changed[rng.integers(len(changed))]
        match rng.integers(6):
            case 0:
                row["kind"] = kinds[rng.integers(len(kinds))]
            case 1:
                row["number"] += int(rng.integers(-3, 4))
            case 2:
                row["rank"] += int(rng.integers(-2, 3))
            case 3 | 4:
                data = bytearray(row["data"])
                for place in rng.integers(0, len(data), rng.integers(1, 4)):
                    data[place] = rng.choice([0, 48 + rng.integers(10), rng.integers(256)])
                row["data"] = bytes(data)
            case 5:
                changed.remove(row)
                if rng.integers(2):
                    changed.insert(rng.integers(len(changed) + 1), row)
        yield changed


@pytest.mark.filterwarnings("ignore:.*the first report counts")
@pytest.mark.parametrize("method", SPECS)
def test_a_changed_cell_is_refused_or_gives_a_session_that_could_be(
    method: str, exported: dict[str, bytes], send: Callable[[bytes], httpx.Response], client: Client
) -> None:
    metadata, rows = rows_of(exported[method])
    changes = mutations(rows, np.random.default_rng(7))
    taken = 0
    for _ in range(60):
        changed = next(changes)
        answer = send(packed(metadata, changed))
        if answer.status_code != 201:
            assert answer.status_code in (413, 422), (answer.text, changed)
            continue
        taken += 1
        state = answer.json()
        if taken <= 8:
            base = max((row["number"] for row in changed if row["kind"] == "epoch"), default=0)
            first = next((e["first_step"] for e in _epochs(client, state["id"]) if e["number"] == base), 0)
            _walk(client, state["id"], state["open_steps"] - first if state["stateful"] else 2, first)
            assert client.restore(client.checkpoint(state["id"])).open_steps == client.session(state["id"]).open_steps
    assert 0 < taken < 60


def _epochs(client: Client, session: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{client.url}/v1/sessions/{session}/epochs")
    return list(answer.raise_for_status().json()["epochs"])


def test_an_epoch_of_a_method_without_any_costs_nothing(send: Callable[[bytes], httpx.Response]) -> None:
    size = 1 << 40
    about = {"method": "random", "size": size, "batch_size": 1, "epochs": 3, "world_size": 65_536}
    records = [{"first_step": 0, "rows": size, "reweighted": 0, "missing": []}]
    records.append({"first_step": size // 65_536, "rows": size, "reweighted": 0, "missing": [[0, 0]]})
    rows = [{"kind": "epoch", "number": n, "rank": 0, "data": json.dumps(r).encode()} for n, r in enumerate(records)]
    answer = send(packed({b"format": b"2", b"spec": json.dumps(about).encode(), b"size": str(size).encode()}, rows))
    assert "has no epochs to restore" in answer.json()["detail"]
