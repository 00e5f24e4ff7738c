"""The HTTP face, over a real socket: what is refused and how, and that nothing changes by it; JSON and Arrow alike."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.manifest import Manifest, now
from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.infobatch import InfoBatch
from curation.selectors.zipfit import ZipFit
from curation.service.client import ARROW, AsyncClient, Client, ServiceError

JSON = "application/json"
HEAD = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url(live: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("datasets")
    curated(root / "good", 50)
    outside = tmp_path_factory.mktemp("outside")
    curated(outside / "secret", 10)
    (root / "link").symlink_to(outside / "secret")
    (root / "half").mkdir()
    (root / "half" / "manifest.json").write_bytes((root / "good" / "manifest.json").read_bytes())
    (root / "half" / "batches.arrow").symlink_to(outside / "secret" / "batches.arrow")
    return str(live(datasets=[root], max_body_bytes=1 << 20, max_rows=5000, request_seconds=20, body_seconds=1).url)


def curated(folder: Path, rows: int) -> None:
    folder.mkdir()
    manifest = Manifest(
        recipe={"steps": []},
        recipe_sha256="0" * 64,
        seed=0,
        inputs=[],
        rows_in=rows,
        rows_out=rows,
        steps=[],
        files={},
        versions={},
        seconds={},
        created=now(),
    )
    manifest.save(folder)
    BatchPlan.of_size(np.arange(rows), 8).save(folder / "batches.arrow")


@pytest.fixture
def http(url: str) -> Any:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def client(url: str) -> Any:
    with Client(url, patience=0) as client:
        yield client


@pytest.fixture
def session(client: Client) -> str:
    return client.create_session("infobatch", size=100, batch_size=8, epochs=3, world_size=2).id


def assert_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:curation:problem:{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert answer.headers["x-request-id"] in document["instance"]
    return document


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
    http: httpx.Client, session: str, body: Any, status: int, kind: str
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
def test_a_bad_arrow_body_is_refused(http: httpx.Client, session: str, body: bytes, kind: str) -> None:
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
def test_a_bad_session_is_not_created(http: httpx.Client, change: dict[str, Any], kind: str) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    wanted = {"method": "random", "size": 100, "batch_size": 8, **change}
    assert_problem(http.post("/v1/sessions", json=wanted), 422, kind)
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


def test_other_refusals(http: httpx.Client, session: str) -> None:
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


def test_a_body_over_the_limit_is_refused_unread(http: httpx.Client, url: str) -> None:
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


def test_a_body_that_never_comes_is_given_up(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 408"


def test_json_and_arrow_say_the_same(http: httpx.Client, client: Client, session: str) -> None:
    spoken = http.post(f"/v1/sessions/{session}/steps", json={"rank": 1, "step": 2}).json()
    batch = client.step(session, 2, rank=1)
    assert spoken["indices"] == batch.indices.tolist()
    assert spoken["weights"] == batch.weights.tolist()
    for name in ("epoch", "step", "epoch_end", "end_of_epoch", "end_of_session", "generation"):
        assert spoken[name] == getattr(batch, name)


def test_infobatch_is_that_of_the_library(client: Client) -> None:
    size, epochs = 500, 4
    session = client.create_session("infobatch", size=size, batch_size=32, epochs=epochs, seed=3).id
    info, step = InfoBatch(size=size, epochs=epochs, seed=3), 0
    reports: list[Any] = []
    for epoch in range(epochs):
        selection = info.epoch(epoch)
        given: list[int] = []
        weights: list[float] = []
        batch = None
        while batch is None or not batch.end_of_epoch:
            batch = client.step(session, step, reports=reports)
            values = np.sin(batch.indices + epoch).astype(np.float32)
            info.update(batch.indices, values)
            reports = [(step, values)]
            given += batch.indices.tolist()
            weights += batch.weights.tolist()
            step += 1
        assert given == selection.indices.tolist()
        assert weights == selection.weights.tolist()
    assert batch is not None
    assert batch.end_of_session


def test_losses_that_are_not_finite_may_be_kept(http: httpx.Client, client: Client) -> None:
    session = client.create_session("infobatch", size=8, batch_size=8, epochs=3, non_finite="keep").id
    first = client.step(session, 0)
    values = np.where(first.indices == 3, np.nan, 1.0).astype(np.float32)
    client.step(session, 1, reports=[(0, values)])
    found = http.get(f"/v1/sessions/{session}/losses").json()
    assert found["reports"][0]["unknown"] == 1
    second = client.create_session("infobatch", size=4, batch_size=4, epochs=3, non_finite="keep").id
    client.step(second, 0)
    body = {"step": None, "reports": [{"step": 0, "losses": [1, None, 2, 3]}]}
    http.post(f"/v1/sessions/{second}/steps", json=body).raise_for_status()
    assert http.get(f"/v1/sessions/{second}/losses").json()["reports"][0]["count"] == 4


def test_an_epoch_waits_or_goes_on(client: Client) -> None:
    ones = np.ones(5, np.float32)
    options: dict[str, Any] = {"size": 10, "batch_size": 5, "epochs": 2, "world_size": 2}
    waiting = client.create_session("infobatch", **options).id
    with pytest.raises(ServiceError) as refused:
        client.step(waiting, 1, reports=[(0, ones)])
    assert refused.value.kind == "missing-reports"
    assert refused.value.members["missing"] == [{"rank": 1, "step": 0}]
    client.report(waiting, [(0, ones)], rank=1)
    assert client.step(waiting, 1).epoch == 1
    skipping = client.create_session("infobatch", on_missing="skip", **options).id
    assert client.step(skipping, 1, reports=[(0, ones)]).epoch == 1


def test_the_first_report_counts(client: Client) -> None:
    session = client.create_session("infobatch", size=6, batch_size=6, epochs=3).id
    client.report(session, [(0, np.arange(6))])
    client.report(session, [(0, np.zeros(6)), (0, np.ones(6))])
    table = client.checkpoint(session)
    rows = pa.ipc.open_stream(table).read_all().to_pylist()
    stored = [np.frombuffer(row["data"], np.float32).tolist() for row in rows if row["kind"] == "report"]
    assert stored == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("epochs_done", [0, 1, 2])
def test_a_checkpoint_goes_on_elsewhere(client: Client, epochs_done: int) -> None:
    session = client.create_session("infobatch", size=64, batch_size=8, epochs=4, seed=1).id
    step, batch = 0, client.step(session, 0)
    while batch.epoch is not None and batch.epoch < epochs_done:
        batch = client.step(session, step + 1, reports=[(step, np.cos(batch.indices))])
        step += 1
    copy = client.restore(client.checkpoint(session), id=f"copy-{session}").id
    for _ in range(12):
        reports = [(step, np.cos(batch.indices))]
        one, two = (client.step(each, step + 1, reports=reports) for each in (session, copy))
        assert np.array_equal(one.indices, two.indices)
        assert np.array_equal(one.weights, two.weights)
        batch, step = one, step + 1
    if epochs_done:
        with pytest.raises(ServiceError, match="before-base"):
            client.step(copy, 0)
    with pytest.raises(ServiceError, match="id-taken"):
        client.restore(client.checkpoint(session), id=copy)


def test_a_false_checkpoint_is_refused(http: httpx.Client, client: Client, session: str) -> None:
    client.step(session, 0)
    table = pa.ipc.open_stream(client.checkpoint(session)).read_all()

    def send(changed: pa.Table) -> httpx.Response:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, changed.schema) as writer:
            writer.write_table(changed)
        body = bytes(sink.getvalue())
        return http.post("/v1/sessions/import", content=body, headers={"Content-Type": ARROW})

    metadata = table.schema.metadata
    assert send(table).status_code == 201
    assert_problem(send(table.replace_schema_metadata({**metadata, b"format": b"9"})), 422, "bad-body")
    assert_problem(send(table.replace_schema_metadata({**metadata, b"size": b"5"})), 422, "bad-body")
    assert_problem(send(table.replace_schema_metadata({**metadata, b"spec": b"{}"})), 422, "bad-body")
    assert_problem(send(table.slice(0, 1)), 422, "bad-body")
    assert_problem(send(table.replace_schema_metadata({})), 422, "bad-body")


def test_rewinding_and_generations(client: Client, session: str) -> None:
    first = [client.step(session, 0, rank=rank).indices for rank in range(2)]
    for rank in range(2):
        client.report(session, [(0, np.ones(8))], rank=rank)
    info = client.rewind(session, 0)
    assert info.generation == 1
    assert info.raw["ranks"] == []
    assert np.array_equal(client.step(session, 0, generation=1).indices, first[0])
    with pytest.raises(ServiceError, match="stale-generation"):
        client.step(session, 0, generation=0)


def test_creating_twice_with_one_id_gives_one_session(client: Client) -> None:
    options: dict[str, Any] = {"size": 10, "batch_size": 5, "id": "mine"}
    assert client.create_session("random", **options).id == client.create_session("random", **options).id == "mine"
    with pytest.raises(ServiceError, match="id-taken"):
        client.create_session("random", **{**options, "size": 11})
    assert "mine" in [one["id"] for one in client.sessions()]
    client.delete("mine")
    with pytest.raises(ServiceError, match="not-found"):
        client.session("mine")


def test_a_named_dataset(client: Client, http: httpx.Client) -> None:
    assert http.get("/v1/datasets").json() == {"datasets": ["good", "half"]}
    assert http.get("/v1/datasets/good").json()["rows_out"] == 50
    session = client.create_session("plan", dataset="good", batch_size=8)
    assert session.size == 50
    given = np.concatenate([client.step(session.id, step).indices for step in range(session.total_steps or 0)])
    assert sorted(given.tolist()) == list(range(50))


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_a_plan_that_does_not_divide_by_ranks_loses_nothing(client: Client, world_size: int) -> None:
    plan = BatchPlan.of_size(np.arange(50), 8)
    session = client.create_session("plan", size=50, batch_size=8, plan=plan, world_size=world_size, epochs=2)
    assert session.total_steps is not None
    for epoch in range(2):
        steps = range(epoch * session.total_steps // 2, (epoch + 1) * session.total_steps // 2)
        batches = [client.step(session.id, step, rank=rank).indices for step in steps for rank in range(world_size)]
        assert sorted(np.concatenate(batches).tolist()) == list(range(50))
        assert all(len(batch) for batch in batches)


def test_acquisition_draws_by_scores_and_learns_from_reports(client: Client) -> None:
    scores = np.arange(100, dtype=np.float32)
    session = client.create_session(
        "acquisition", size=100, batch_size=10, epochs=3, seed=2, scores=scores, parameters={"k": 10, "once": True}
    ).id
    seen: list[int] = []
    for step in range(3):
        reports = [(step - 1, np.full(10, 5.0))] if step else []
        batch = client.step(session, step, reports=reports)
        assert batch.end_of_epoch
        seen += batch.indices.tolist()
    assert len(set(seen)) == 30
    expected = StochasticAcquisition().select(scores, 10, seed=(2, 0)).indices
    assert seen[:10] == expected.tolist()
    with pytest.raises(ServiceError, match="no negative scores"):
        client.report(session, [(2, np.full(10, -1.0))])


def test_selecting_without_a_session(client: Client, http: httpx.Client) -> None:
    scores = np.random.default_rng(0).random(1000)
    remote = client.acquire(scores, 20, seed=4)
    assert np.array_equal(remote.indices, StochasticAcquisition().select(scores, 20, seed=(4,)).indices)
    spoken = http.post("/v1/select/acquire", json={"scores": scores.tolist(), "k": 20, "seed": 4}).json()
    assert spoken["indices"] == remote.indices.tolist()
    texts = [f"def f{i}(x): return x + {i}" if i % 2 else f"the cat number {i} sat down" for i in range(40)]
    targets = ["def g(y): return y * 2"]
    chosen = client.zipfit(texts, targets, 5)
    own = ZipFit(targets=targets).select(texts, 5)
    assert np.array_equal(chosen.indices, own.indices)
    assert np.array_equal(chosen.scores, own.scores)
    rng = np.random.default_rng(1)
    pair = Pair(rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32))
    better = Pair(pair.a, pair.a)
    assert len(client.jest(pair, better, filter_ratio=0.5, chunks=4, seed=1)) == 20
    assert np.array_equal(client.jest(pair, better, seed=1).indices, client.jest(pair, better, seed=1).indices)
    plan = client.b3(pair.a, pair.b, batch_size=8, cluster_size=4, ranks=(2, 12), seed=3)
    assert sorted(np.concatenate(list(plan)).tolist()) == list(range(40))


BAD_SELECTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("acquire", {"scores": [1.0], "k": 2}, 422, "bad-body"),
    ("acquire", {"scores": [-1.0], "k": 1}, 422, "bad-body"),
    ("acquire", {"scores": [1.0] * 5001, "k": 1}, 413, "too-large"),
    ("acquire", {"scores": [1.0], "k": 1, "kind": "best"}, 422, "bad-body"),
    ("zipfit", {"texts": [""], "targets": ["a"], "k": 1}, 422, "bad-body"),
    ("zipfit", {"texts": ["a"], "targets": [], "k": 1}, 422, "bad-body"),
    ("jest", {"learner_a": [[1.0]], "learner_b": [[1.0, 2.0]], "criterion": "hard"}, 422, "bad-body"),
    ("jest", {"learner_a": [[1.0], [1.0, 2.0]], "learner_b": [[1.0]], "criterion": "hard"}, 422, "bad-body"),
    ("jest", {}, 422, "bad-body"),
    ("b3", {"queries": [[1.0]], "positives": [[1.0], [2.0]], "batch_size": 4, "cluster_size": 2}, 422, "bad-body"),
    ("b3", {"queries": [], "positives": []}, 422, "bad-body"),
]


@pytest.mark.parametrize(("name", "body", "status", "kind"), BAD_SELECTS)
def test_a_bad_selection_is_refused(
    http: httpx.Client, name: str, body: dict[str, Any], status: int, kind: str
) -> None:
    assert_problem(http.post(f"/v1/select/{name}", json=body), status, kind)


def test_operations(http: httpx.Client, client: Client, session: str) -> None:
    assert http.get("/healthz").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}
    client.step(session, 0)
    metrics = http.get("/metrics").text
    assert f'curation_pool_size{{method="infobatch",session="{session}"}} 100.0' in metrics
    assert 'curation_request_seconds_count{method="POST",route="/v1/sessions/{id}/steps",status="200"}' in metrics
    assert "curation_batches_total" in metrics
    given = http.get("/healthz", headers={"X-Request-ID": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    assert http.get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_the_docs_page_needs_no_network(http: httpx.Client) -> None:
    import re

    page = http.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        assert link.startswith("/"), link
        assert http.get(link).status_code == 200
    assert "https://" not in page


def test_the_losses_and_epochs_of_a_session(http: httpx.Client, client: Client) -> None:
    session = client.create_session("random", size=100, batch_size=10, epochs=2).id
    for step in range(15):
        client.report(session, [(step, np.full(10, float(step)))])
    page = http.get(f"/v1/sessions/{session}/losses", params={"limit": 10, "bins": 4}).json()
    assert [one["mean"] for one in page["reports"]] == list(range(10))
    assert page["next"] == 10
    assert sum(page["counts"]) == 100
    epochs = http.get(f"/v1/sessions/{session}/epochs").json()["epochs"]
    assert [(one["first_step"], one["steps"], one["rows"]) for one in epochs] == [(0, 10, 100), (10, 10, 100)]


@pytest.mark.timeout(60)
def test_the_async_client(url: str) -> None:
    import asyncio

    async def run() -> list[Any]:
        async with AsyncClient(url) as client:
            session = (await client.create_session("random", size=1000, batch_size=10, world_size=4)).id
            batches = await asyncio.gather(*(client.step(session, 3, rank=rank) for rank in range(4)))
            await client.report(session, [(3, np.ones(10))], rank=2)
            return [batch.indices for batch in batches]

    given = np.concatenate(asyncio.run(run()))
    assert len(np.unique(given)) == 40


def test_a_request_to_a_dead_server_is_repeated_and_then_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start = time.monotonic()
    with Client(f"http://127.0.0.1:{port}", patience=0.5) as client, pytest.raises(ServiceError, match="unreachable"):
        client.session("x")
    assert time.monotonic() - start < 10
