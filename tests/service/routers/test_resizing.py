"""``/resize`` and ``import?world_size=`` over HTTP: what is left goes to the ranks there are."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.service.client import ARROW, Client, ServiceError

PRUNE = {"parameters": {"prune_ratio": 0.0}}


def report(client: Client, session: str, rank: int, steps: range) -> list[int]:
    """Report steps of a rank; their rows."""
    rows: list[int] = []
    for step in steps:
        batch = client.step(session, step, rank=rank)
        client.report(session, [(step, batch.indices.astype(np.float32))], rank=rank)
        rows += batch.indices[batch.weights > 0].tolist()
    return rows


def rest_of_epoch(client: Client, session: str, ranks: int, step: int) -> list[int]:
    end = client.step(session, step).epoch_end
    return [row for rank in range(ranks) for row in report(client, session, rank, range(step, end))]


@pytest.mark.parametrize("method", ["infobatch", "random"])
def test_what_was_not_reported_is_handed_out_to_the_ranks_there_are(client: Client, http: Any, method: str) -> None:
    options: dict[str, Any] = PRUNE if method == "infobatch" else {}
    session = client.create_session(method, size=100, batch_size=4, epochs=2, world_size=3, **options).id
    rows = [row for rank, steps in ((0, 4), (1, 4), (2, 2)) for row in report(client, session, rank, range(steps))]
    before = client.session(session).generation
    answer = http.post(f"/v1/sessions/{session}/resize", json={"from_step": 4, "world_size": 2, "generation": before})
    assert answer.status_code == 200, answer.text
    assert answer.json()["segments"] == [{"epoch": 0, "from_step": 4, "steps": 8, "world_size": 2, "rows": 60}]
    again = http.post(f"/v1/sessions/{session}/resize", json={"from_step": 4, "world_size": 2, "generation": before})
    assert again.json() == answer.json()
    assert client.session(session).world_size == 2
    assert sorted(rows + rest_of_epoch(client, session, 2, 4)) == list(range(100))
    assert sorted(rest_of_epoch(client, session, 2, 12)) == list(range(100))
    assert [(epoch["first_step"], epoch["steps"]) for epoch in client.epochs(session)] == [(0, 12), (12, 13)]


@pytest.mark.parametrize("method", ["infobatch", "random"])
def test_a_checkpoint_goes_on_with_other_ranks(client: Client, http: Any, method: str) -> None:
    options: dict[str, Any] = PRUNE if method == "infobatch" else {}
    session = client.create_session(method, size=100, batch_size=4, epochs=2, world_size=3, **options).id
    rows = [row for rank in range(3) for row in report(client, session, rank, range(3))]
    client.resize(session, 5, generation=client.session(session).generation)
    rows += [row for rank in range(5) for row in report(client, session, rank, range(3, 4))]
    copy = client.restore(client.checkpoint(session))
    assert (copy.world_size, copy.from_step) == (5, 3)
    for rank in range(5):
        assert np.array_equal(client.step(copy.id, 4, rank=rank).indices, client.step(session, 4, rank=rank).indices)
    other = client.restore(client.checkpoint(session), world_size=2, from_step=4)
    assert (other.world_size, other.from_step) == (2, 4)
    assert sorted(rows + rest_of_epoch(client, other.id, 2, 4)) == list(range(100))


@pytest.mark.parametrize("from_step", [None, 16, 13])
@pytest.mark.parametrize("method", ["random", "plan"])
def test_a_copy_of_a_checkpoint_knows_what_was_reported_as_it_is_resized(
    client: Client, method: str, from_step: int | None
) -> None:
    options: dict[str, Any] = {"size": 100, "batch_size": 4, "epochs": 2, "world_size": 2}
    if method == "plan":
        options["parameters"] = {"batches": np.arange(100).reshape(25, 4).tolist()}
    session = client.create_session(method, **options).id
    for rank in range(2):
        report(client, session, rank, range(13))
    rows = [row for rank, end in ((0, 16), (1, 15)) for row in report(client, session, rank, range(13, end))]
    copy = client.restore(client.checkpoint(session))
    resized = client.resize(copy.id, 3, generation=copy.generation, from_step=from_step)
    assert resized.from_step == (15 if from_step is None else from_step)
    if from_step is None:
        rows = [row for row in rows if row not in client.step_rows(session, 15, rank=0).rows]
    rest = rest_of_epoch(client, copy.id, 3, resized.from_step)
    assert sorted(rest if from_step == 13 else rows + rest) == list(range(100))
    if from_step is None:
        losses = client.step_rows(copy.id, 14)
        assert losses.reported.all()


@pytest.mark.parametrize(
    "changed",
    [
        {"first_step": -1},
        {"first_step": 10**6},
        {"steps": 7},
        {"steps": 0, "left": []},
        {"world_size": 0},
        {"world_size": 10**9},
        {"left": [[0, 101]]},
        {"left": [[50, 60], [40, 45]]},
        {"left": [[50, 50]]},
        {"left": "all"},
        {"epoch": 1},
        {"epoch": -1},
    ],
)
@pytest.mark.parametrize("method", ["infobatch", "random"])
def test_segments_of_a_checkpoint_are_not_believed(
    client: Client, http: Any, method: str, changed: dict[str, Any]
) -> None:
    session = client.create_session(method, size=100, batch_size=4, epochs=1, world_size=3).id
    client.step(session, 0)
    client.resize(session, 2, generation=client.session(session).generation, from_step=0)
    table = pa.ipc.open_stream(client.checkpoint(session)).read_all()
    lines = table.to_pylist()
    line = next(line for line in lines if line["kind"] == "segment")
    packed = {name: changed[name] for name in ("steps", "left", "world_size") if name in changed}
    line["data"] = json.dumps(json.loads(line["data"]) | packed).encode()
    line["number"] = changed.get("first_step", line["number"])
    line["rank"] = changed.get("epoch", line["rank"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(lines, table.schema))
    answer = http.post("/v1/sessions/import", content=sink.getvalue().to_pybytes(), headers={"Content-Type": ARROW})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:curation:problem:bad-body")


def test_a_web_page_cannot_resize(client: Client, http: Any, assert_problem: Any) -> None:
    session = client.create_session("random", size=100, batch_size=4, world_size=3)
    asked = json.dumps({"world_size": 1, "generation": session.generation})
    for kind in ({"Content-Type": "text/plain"}, {}):
        answer = http.post(f"/v1/sessions/{session.id}/resize", content=asked, headers=kind)
        assert_problem(answer, 415, "bad-media-type")
    assert client.session(session.id).world_size == 3


def test_a_checkpoint_of_an_epoch_without_reports_goes_on_with_other_ranks(client: Client) -> None:
    session = client.create_session("infobatch", size=64, batch_size=4, epochs=3, world_size=2, **PRUNE).id
    for rank in range(2):
        report(client, session, rank, range(8))
    client.step(session, 8)
    other = client.restore(client.checkpoint(session), world_size=3)
    assert (other.world_size, other.from_step) == (3, 8)
    assert sorted(rest_of_epoch(client, other.id, 3, 8)) == list(range(64))


def test_ranks_without_a_state_go_on_in_the_present_epoch(client: Client) -> None:
    options: dict[str, Any] = {"epochs": 3, "world_size": 2, "on_missing": "skip", **PRUNE}
    session = client.create_session("infobatch", size=64, batch_size=4, **options).id
    report(client, session, 0, range(8))
    client.step(session, 8)
    info = client.resize(session, 1, generation=client.session(session).generation)
    assert info.from_step == 8


@pytest.mark.parametrize("ranks", [(4, 2), (2, 4)], ids=str)
def test_a_quorum_is_of_the_ranks_there_are(client: Client, ranks: tuple[int, int]) -> None:
    options: dict[str, Any] = {"epochs": 3, "on_missing": {"after_seconds": 0, "quorum": 0.5}, **PRUNE}
    session = client.create_session("infobatch", size=64, batch_size=4, world_size=ranks[0], **options)
    client.resize(session.id, ranks[1], generation=session.generation, from_step=0)
    end = client.step(session.id, 0).epoch_end
    for rank in range(ranks[1] // 2):
        with pytest.raises(ServiceError, match="missing"):
            client.step(session.id, end)
        report(client, session.id, rank, range(end))
    assert client.step(session.id, end).epoch == 1
