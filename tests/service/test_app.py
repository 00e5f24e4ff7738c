"""The HTTP face of sessions, over a real socket: JSON and Arrow alike, checkpoints, rewinding, the other routes."""

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.plan import BatchPlan
from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.infobatch import InfoBatch
from curation.service.client import ARROW, AsyncClient, Client, ServiceError

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]


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
    client.report(session, [(0, np.arange(6))])
    with pytest.warns(UserWarning, match="other losses of rank 0 for step 0, and the first report counts"):
        client.report(session, [(0, np.zeros(6)), (0, np.ones(6))])
    assert client.step(session, 0).ignored == ()
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


def test_a_restored_session_whose_answer_was_lost_is_there(url: str, client: Client, session: str) -> None:
    client.step(session, 0)
    answers: list[int] = []

    class Losing(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            answers.append(answer.status_code)
            if len(answers) == 1:
                raise httpx.ReadError("lost")
            return answer

    with Client(url, transport=Losing()) as other:
        copy = other.restore(client.checkpoint(session))
    assert answers == [201, 200]
    assert copy.raw["spec"] == client.session(session).raw["spec"]


def test_a_false_checkpoint_is_refused(
    http: httpx.Client, client: Client, session: str, assert_problem: Problem
) -> None:
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
    assert_problem(send(table.replace_schema_metadata({})), 422, "bad-body")


def test_rewinding_and_generations(client: Client, session: str) -> None:
    first = [client.step(session, 0, rank=rank).indices for rank in range(2)]
    for rank in range(2):
        client.report(session, [(0, np.ones(8))], rank=rank)
    before = client.session(session).generation
    info = client.rewind(session, 0)
    assert info.generation == before + 1
    assert info.raw["ranks"] == []
    assert np.array_equal(client.step(session, 0, generation=before + 1).indices, first[0])
    with pytest.raises(ServiceError, match="stale-generation"):
        client.step(session, 0, generation=before)


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


@pytest.mark.parametrize(("shift", "lowest"), [(0.5, -0.5), ("lowest", -9.0)])
def test_a_session_of_scores_that_may_be_negative(client: Client, shift: float | str, lowest: float) -> None:
    scores = np.linspace(lowest, 5, 20, dtype=np.float32)
    parameters = {"k": 10, "shift": shift}
    spec: dict[str, Any] = {"size": 20, "batch_size": 10, "epochs": 2, "scores": scores, "parameters": parameters}
    session = client.create_session("acquisition", **spec).id
    batch = client.step(session, 0)
    method = StochasticAcquisition(shift=shift)  # type: ignore[arg-type]
    assert batch.indices.tolist() == method.select(scores, 10, seed=(0, 0)).indices.tolist()
    client.report(session, [(0, np.full(10, lowest))])
    assert len(client.step(session, 1).indices) == 10
    if shift != "lowest":
        with pytest.raises(ServiceError, match=r"no score below -0\.5"):
            client.report(session, [(1, np.full(10, -0.75))])
        spec["scores"] = scores - 1
        with pytest.raises(
            ServiceError, match=r"position 0 is -1\.5: it must be -0\.5 or more, with the shift of 0\.5"
        ):
            client.create_session("acquisition", **spec)


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
