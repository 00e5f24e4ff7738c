"""What the service refuses and how, over a real socket, and that nothing changes by it."""

import gzip
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.service.client import ARROW, Client

JSON = "application/json"
HEAD = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
Problem = Callable[[httpx.Response, int, str], dict[str, Any]]

BAD_STEPS: list[tuple[Any, int, str]] = [
    ({"rank": 2, "step": 0}, 422, "bad-rank"),
    ({"rank": -1, "step": 0}, 422, "bad-rank"),
    ({"rank": 10**30, "step": 0}, 422, "bad-rank"),
    ({"rank": 0, "step": -1}, 422, "bad-step"),
    ({"rank": 0, "step": 10**30}, 409, "epoch-not-open"),
    ({"rank": 0, "step": 8}, 409, "epoch-not-open"),
    ({"rank": 0, "step": 0.5}, 422, "bad-body"),
    ({"rank": True, "step": 0}, 422, "bad-body"),
    ({"rank": "0", "step": 0}, 422, "bad-body"),
    ({"rank": 0, "step": 1, "extra": 1}, 422, "bad-body"),
    ({"rank": 0, "step": 1, "reports": [{"step": 0, "losses": [0.5] * 7}]}, 422, "bad-report"),
    ({"rank": 0, "step": 1, "reports": [{"step": 0, "losses": [0.5] * 7 + [None]}]}, 422, "bad-report"),
    ({"rank": 0, "step": 1, "reports": [{"step": 0, "losses": [0.5] * 7 + [1e300]}]}, 422, "bad-report"),
    ({"rank": 0, "step": 1, "reports": [{"step": 0, "losses": "12345678"}]}, 422, "bad-body"),
    ({"rank": 0, "step": 1, "reports": [{"step": 1, "losses": [0.5] * 8}]}, 422, "bad-report"),
    ({"rank": 0, "step": None, "reports": [{"step": 7, "losses": [0.5] * 8}]}, 422, "bad-report"),
    ({"rank": 0, "step": None, "reports": [{"step": -1, "losses": [0.5] * 8}]}, 422, "bad-report"),
    ({"rank": 0, "step": None, "reports": [{"step": 10**30, "losses": [0.5] * 8}]}, 422, "bad-report"),
    ({"rank": 0, "step": 0, "generation": 7}, 409, "stale-generation"),
    (b'{"rank": 0, "step": 1, "reports": [{"step": 0, "losses": [NaN]}]}', 422, "bad-body"),
    (b'{"rank": 0', 422, "bad-body"),
    (b"[]", 422, "bad-body"),
    (b"\xff\xfe", 422, "bad-body"),
]


@pytest.mark.parametrize(("body", "status", "kind"), BAD_STEPS)
def test_a_bad_step_is_refused_and_changes_nothing(
    http: httpx.Client, session: str, body: Any, status: int, kind: str, assert_problem: Problem
) -> None:
    http.post(f"/v1/sessions/{session}/steps", json={"step": 0}).raise_for_status()
    before = http.get(f"/v1/sessions/{session}").json()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(f"/v1/sessions/{session}/steps", content=content, headers={"Content-Type": JSON})
    assert_problem(answer, status, kind)
    assert http.get(f"/v1/sessions/{session}").json() == before


def step_body(columns: dict[str, pa.Array], **metadata: str) -> bytes:
    batch = pa.record_batch(columns, metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def losses(values: list[Any], kind: Any = None) -> pa.Array:
    return pa.array([values], pa.list_(kind or pa.float32()))


BAD_ARROW: list[tuple[bytes, str]] = [
    (b"", "bad-body"),
    (b"not arrow at all, just bytes", "bad-body"),
    (step_body({"step": pa.array([0]), "losses": losses([1.0] * 8)}, rank="x"), "bad-body"),
    (step_body({"step": pa.array([0]), "losses": losses([1.0] * 8)}, step="1.5"), "bad-body"),
    (step_body({"step": pa.array([0])}, step="1"), "bad-body"),
    (step_body({"step": pa.array([0]), "losses": losses([1] * 8, pa.int64())}, step="1"), "bad-body"),
    (step_body({"step": pa.array([0.0]), "losses": losses([1.0] * 8)}, step="1"), "bad-body"),
    (step_body({"step": pa.array([None], pa.int64()), "losses": losses([1.0] * 8)}, step="1"), "bad-body"),
    (step_body({"step": pa.array([0]), "losses": losses([float("nan")] * 8)}, step="1"), "bad-report"),
    (step_body({"step": pa.array([0]), "losses": losses([1e300] * 8, pa.float64())}, step="1"), "bad-report"),
    (step_body({"step": pa.array([0]), "losses": losses([None] * 8)}, step="1"), "bad-report"),
]


@pytest.mark.parametrize(("body", "kind"), BAD_ARROW)
def test_a_bad_arrow_body_is_refused(
    http: httpx.Client, session: str, body: bytes, kind: str, assert_problem: Problem
) -> None:
    answer = http.post(f"/v1/sessions/{session}/steps", content=body, headers={"Content-Type": ARROW})
    assert_problem(answer, 422, kind)
    assert http.get(f"/v1/sessions/{session}").json()["ranks"] == []


def test_truncated_and_damaged_arrow_never_breaks_the_server(http: httpx.Client, session: str) -> None:
    whole = step_body({"step": pa.array([0]), "losses": losses([1.0] * 8)}, step="1")
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(0, 256)
        cut = bytes(damaged[: rng.integers(1, len(whole) + 1)])
        answer = http.post(f"/v1/sessions/{session}/steps", content=cut, headers={"Content-Type": ARROW})
        assert answer.status_code < 500, (cut, answer.text)


BAD_SESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"method": "nonsense"}, "bad-parameters"),
    ({"size": None}, "bad-body"),
    ({"size": 0}, "bad-body"),
    ({"size": 2**41}, "bad-body"),
    ({"batch_size": 0}, "bad-body"),
    ({"epochs": 0}, "bad-body"),
    ({"world_size": 0}, "bad-body"),
    ({"seed": -1}, "bad-body"),
    ({"id": "a/b"}, "bad-body"),
    ({"surprise": 1}, "bad-body"),
    ({"parameters": {"surprise": 1}}, "bad-parameters"),
    ({"method": "infobatch", "size": 2**33}, "bad-parameters"),
    ({"method": "acquisition", "size": 2**33}, "bad-parameters"),
    ({"method": "infobatch", "parameters": {"prune_ratio": 1.0}}, "bad-parameters"),
    ({"method": "infobatch", "parameters": {"prune_ratio": "half"}}, "bad-parameters"),
    ({"method": "plan"}, "bad-parameters"),
    ({"method": "plan", "parameters": {"batches": [[0, 0]]}}, "bad-parameters"),
    ({"method": "plan", "parameters": {"batches": [[0, 100]]}}, "bad-parameters"),
    ({"method": "plan", "parameters": {"batches": [[-1]]}}, "bad-parameters"),
    ({"method": "plan", "parameters": {"batches": [[2**70]]}}, "bad-parameters"),
    ({"method": "plan", "parameters": {"batches": [[]]}}, "bad-parameters"),
    ({"method": "acquisition", "parameters": {"scores": [1.0]}}, "bad-parameters"),
    ({"method": "acquisition", "parameters": {"scores": [-1.0] * 100}}, "bad-parameters"),
    ({"method": "acquisition", "parameters": {"k": 101}}, "bad-parameters"),
    ({"dataset": "nowhere", "size": None}, "bad-dataset"),
    ({"dataset": "good", "size": 51}, "bad-dataset"),
    ({"dataset": "../outside/secret", "size": None}, "bad-dataset"),
    ({"dataset": "..", "size": None}, "bad-dataset"),
    ({"dataset": "/etc", "size": None}, "bad-dataset"),
    ({"dataset": "good/../good", "size": None}, "bad-dataset"),
    ({"dataset": "link", "size": None}, "bad-dataset"),
    ({"dataset": "good\0", "size": None}, "bad-dataset"),
    ({"dataset": "half", "size": None, "method": "plan"}, "bad-dataset"),
]


@pytest.mark.parametrize(("change", "kind"), BAD_SESSIONS)
def test_a_bad_session_is_not_created(
    http: httpx.Client, change: dict[str, Any], kind: str, assert_problem: Problem
) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    wanted = {"method": "random", "size": 100, "batch_size": 8, **change}
    assert_problem(http.post("/v1/sessions", json=wanted), 422, kind)
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


def test_other_refusals(http: httpx.Client, session: str, assert_problem: Problem) -> None:
    assert_problem(http.get("/v1/sessions/nobody"), 404, "not-found")
    assert_problem(http.get("/nowhere"), 404, "not-found")
    assert assert_problem(http.put(f"/v1/sessions/{session}"), 405, "bad-method")["allow"]
    assert_problem(http.get(f"/v1/sessions/{session}/steps"), 405, "bad-method")
    steps = f"/v1/sessions/{session}/steps"
    assert_problem(http.post(steps, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "bad-media-type")
    assert_problem(http.post(steps, json={}, headers={"Accept": "image/png"}), 406, "not-acceptable")
    assert_problem(http.get("/v1/sessions", headers={"Host": "evil.example"}), 403, "bad-host")
    assert_problem(http.post(f"/v1/sessions/{session}/rewind", json={"step": 99}), 422, "bad-step")
    assert_problem(http.post(f"/v1/sessions/{session}/rewind", json={"step": "1"}), 422, "bad-body")
    assert_problem(http.get("/v1/datasets/..%2Fsecret"), 404, "not-found")


def test_a_body_over_the_limit_is_refused_unread(http: httpx.Client, url: str, assert_problem: Problem) -> None:
    answer = http.post("/v1/sessions", content=b" " * (1 << 20) + b"{}", headers={"Content-Type": JSON})
    assert_problem(answer, 413, "too-large")
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(HEAD + b"Content-Length: 1073741824\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 413"
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(18):
            raw.sendall(piece)
        assert raw.recv(12) == b"HTTP/1.1 413"


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_what_a_compressed_body_expands_to_is_limited_before_it_is_expanded(
    http: httpx.Client, client: Client, session: str, codec: str, assert_problem: Problem
) -> None:
    def send(path: str, table: pa.Table, request: dict[str, Any]) -> httpx.Response:
        table = table.replace_schema_metadata({"request": json.dumps(request), "step": "1"})
        body = stream(table, codec)
        assert len(body) < 1 << 16
        return http.post(path, content=body, headers={"Content-Type": ARROW})

    large = pa.table({"scores": np.ones(200_000)})
    answer = send("/v1/select/acquire", large, {"k": 1})
    assert "expand to 1600000 bytes" in assert_problem(answer, 413, "too-large")["detail"]
    several = pa.concat_tables([large.slice(0, 50_000)] * 4)
    assert_problem(send("/v1/select/acquire", several, {"k": 1}), 413, "too-large")
    answer = send("/v1/sessions", large, {"method": "acquisition", "size": 200_000, "batch_size": 1})
    assert_problem(answer, 413, "too-large")
    huge = pa.table({"step": [0], "losses": pa.array([np.ones(400_000, np.float32)], pa.list_(pa.float32()))})
    assert_problem(send(f"/v1/sessions/{session}/steps", huge, {}), 413, "too-large")
    scores = pa.table({"scores": np.ones(200_000)})
    assert_problem(send(f"/v1/sessions/{session}/choices", scores, {}), 422, "other-method")
    choosing = client.create_session("jest", size=64, batch_size=16, parameters={"chunks": 2, "joint": False}).id
    assert_problem(send(f"/v1/sessions/{choosing}/choices", scores, {}), 413, "too-large")
    assert send("/v1/select/acquire", large.slice(0, 5000), {"k": 1}).status_code == 200
    eight = pa.table({"step": [0], "losses": pa.array([np.ones(8, np.float32)], pa.list_(pa.float32()))})
    assert send(f"/v1/sessions/{session}/steps", eight, {}).status_code == 200
    assert client.session(session).raw["ranks"][0]["reports"] == 1


EXPANDING = {
    "null": pa.nulls(10**9),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([10**9]), pa.array([1.0])),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.array(["x" * 1000])),
    "no width": pa.array([[]] * 10, pa.list_(pa.float32(), 0)),
    "struct": pa.array([{}], pa.struct([])),
    "view": pa.array(["x"], pa.string_view()),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_a_column_that_takes_no_room_in_the_body_is_refused(
    http: httpx.Client, name: str, assert_problem: Problem
) -> None:
    body = stream(pa.table({"scores": EXPANDING[name]}).replace_schema_metadata({"request": '{"k": 1}'}))
    answer = http.post("/v1/select/acquire", content=body, headers={"Content-Type": ARROW})
    assert "send numbers, strings, binary, or lists of them" in assert_problem(answer, 422, "bad-body")["detail"]


def test_an_encoded_body_is_refused(http: httpx.Client, assert_problem: Problem) -> None:
    for kind in (JSON, ARROW):
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        answer = http.post("/v1/sessions", content=gzip.compress(b" " * 10**6), headers=headers)
        assert "Content-Encoding is 'gzip'" in assert_problem(answer, 415, "bad-media-type")["detail"]


def test_a_body_that_never_comes_is_given_up(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 408"


def test_what_a_path_allows_is_all_of_it(http: httpx.Client, session: str, assert_problem: Problem) -> None:
    for path, methods in (("/v1/sessions", "GET, POST"), (f"/v1/sessions/{session}", "DELETE, GET")):
        answer = http.put(path)
        assert_problem(answer, 405, "bad-method")
        allowed = answer.headers["allow"].split(", ")
        assert set(methods.split(", ")) <= set(allowed), path


def test_health_is_asked_with_head(http: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("id", ["a%00b", "a b", "ä", "x" * 65, "a%0A"])
def test_a_bad_id_is_refused_alike_everywhere(http: httpx.Client, id: str, assert_problem: Problem) -> None:
    assert_problem(http.get(f"/v1/sessions/{id}"), 422, "bad-body")
    for route in ("steps", "choices", "rewind"):
        assert_problem(http.post(f"/v1/sessions/{id}/{route}", json={"step": 0}), 422, "bad-body")


def test_a_header_that_decides_stands_once(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    for twice in (b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", b"Host: localhost\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\n" + twice + b"\r\n")
            assert raw.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (f"{ARROW};q=0", None),
        (f"{ARROW};q=0, application/json", JSON),
        (f"{ARROW};q=0.1, application/json", JSON),
        (f"{ARROW}, application/json", ARROW),
        (f"{ARROW};q=0.5, */*;q=0.1", ARROW),
        ("application/json;q=0, */*", ARROW),
        ("application/*;q=0", None),
        ("*/*", JSON),
        ("application/json;q=x", None),
    ],
)
def test_the_weights_of_accept_are_obeyed(
    http: httpx.Client, session: str, accept: str, kind: str | None, assert_problem: Problem
) -> None:
    answer = http.post(f"/v1/sessions/{session}/steps", json={"step": 0}, headers={"Accept": accept})
    if kind is None:
        assert_problem(answer, 406, "not-acceptable")
    else:
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


def test_true_is_no_number(http: httpx.Client, assert_problem: Problem) -> None:
    acquire = {"scores": [1.0, 2.0], "k": 1}
    for change in ({"seed": False}, {"k": True}, {"beta": True}, {"scores": [True, False]}, {"k": "1"}):
        assert_problem(http.post("/v1/select/acquire", json=acquire | change), 422, "bad-body")
    session = {"method": "infobatch", "size": 10, "batch_size": 2}
    for change in ({"seed": False}, {"size": True}, {"epochs": "3"}, {"drop_last": 1}):
        assert_problem(http.post("/v1/sessions", json=session | change), 422, "bad-body")
    for change in ({"prune_ratio": True}, {"prune_ratio": [True]}, {"delta": "0.5"}):
        answer = http.post("/v1/sessions", json=session | {"parameters": change})
        assert_problem(answer, 422, "bad-parameters")


def test_there_is_no_last_step_before_the_first(http: httpx.Client, session: str) -> None:
    answer = http.post(f"/v1/sessions/{session}/rewind", json={"step": 5})
    assert answer.json()["detail"] == "step 5 was never handed out: no step is open yet"


def test_reports_are_counted_before_they_are_read(
    http: httpx.Client, session: str, client: Client, assert_problem: Problem
) -> None:
    path = f"/v1/sessions/{session}/steps"
    reports = [{"step": 0, "losses": []}] * 5000
    assert_problem(http.post(path, json={"reports": reports}), 422, "bad-body")
    nothing = pa.ListArray.from_arrays(pa.array(np.zeros(5001, np.int32)), pa.array([], pa.float32()))
    table = pa.table({"step": np.zeros(5000, np.int64), "losses": nothing})
    for codec in (None, "zstd"):
        answer = http.post(path, content=stream(table, codec), headers={"Content-Type": ARROW})
        assert "5000 rows" in assert_problem(answer, 413, "too-large")["detail"]
    several = {"report_ranks": [0] * 5000, "report_steps": [0] * 5000, "losses": [[]] * 5000}
    answer = http.post(f"/v1/sessions/{session}/batches", json=several)
    assert "5000 reports" in assert_problem(answer, 413, "too-large")["detail"]


def test_an_unknown_dataset_is_not_found(http: httpx.Client, assert_problem: Problem) -> None:
    for path in ("/v1/datasets/nowhere", "/dashboard/datasets/nowhere"):
        assert_problem(http.get(path), 404, "not-found")
