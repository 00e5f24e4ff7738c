"""Trace: the rows of steps and the visits of rows against what trainers were handed, over ranks, restarts, rewinds."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.service.client import AsyncClient, Client

SIZE, BATCH, RANKS = 60, 5, 2
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("random", {}),
    ("plan", {"batches": [list(range(start, start + 6)) for start in range(0, 60, 6)]}),
    ("infobatch", {"prune_ratio": 0.5}),
    ("acquisition", {"k": 50}),
]
Told = list[tuple[int, int, int, int, int, float, float]]
"""(epoch, step, rank, position, row, weight, loss), as a trainer saw them."""


def train(client: Client, id: str, first: int, steps: int, rng: np.random.Generator) -> Told:
    """Takes and reports some steps on all ranks."""
    told: Told = []
    for step in range(first, first + steps):
        batches = [client.step(id, step, rank=rank) for rank in range(RANKS)]
        for rank, batch in enumerate(batches):
            losses = rng.gamma(2, 1, len(batch.indices)).astype(np.float32)
            client.report(id, [(step, losses)], rank=rank)
            assert batch.epoch is not None
            columns = (batch.indices.tolist(), batch.weights.tolist(), losses.tolist())
            told += [
                (batch.epoch, step, rank, position, *row) for position, row in enumerate(zip(*columns, strict=True))
            ]
    return told


def of_step(client: Client, id: str, step: int) -> Told:
    rows = client.step_rows(id, step)
    assert rows.reported.all()
    columns = (rows.ranks, rows.positions, rows.rows, rows.weights, rows.losses)
    return [(rows.epoch, step, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def of_row(client: Client, id: str, row: int) -> Told:
    names = ("epoch", "step", "rank", "position", "row", "weight", "loss")
    return [tuple({**visit, "row": row}[name] for name in names) for visit in client.row_visits(id, row)]


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_it_is_what_trainers_were_handed_over_restarts_and_rewinds(
    live: Callable[..., Any], method: str, parameters: dict[str, Any]
) -> None:
    server, rng = live(), np.random.default_rng(0)
    with Client(server.url) as client:
        id = client.create_session(
            method, size=SIZE, batch_size=BATCH, epochs=5, world_size=RANKS, seed=2, parameters=parameters
        ).id
        told = train(client, id, 0, 17, rng)
        client.rewind(id, 14)
        told = [visit for visit in told if visit[1] < 14] + train(client, id, 14, 6, rng)
        server.stop()
        server.start()
        for step in (0, 3, 19, 14, 8):
            assert of_step(client, id, step) == [visit for visit in told if visit[1] == step]
        for row in (0, 17, 59):
            visits = [visit for visit in of_row(client, id, row) if visit[1] < 20]
            assert visits == [visit for visit in told if visit[4] == row]
        told += train(client, id, 20, 2, rng)
        assert of_step(client, id, 21) == [visit for visit in told if visit[1] == 21]
        alone = client.step_rows(id, 8, rank=1)
        assert alone.rows.tolist() == [visit[4] for visit in told if visit[1:3] == (8, 1)]


@pytest.mark.parametrize("method", ["random", "infobatch"])
def test_it_reaches_over_a_change_of_the_world_size(live: Callable[..., Any], method: str) -> None:
    with Client(live().url) as client:
        info = client.create_session(method, size=SIZE, batch_size=BATCH, epochs=2, world_size=3)
        id, told = info.id, []
        resized = {"from_step": 2, "world_size": 2, "generation": info.generation}
        step, world_size, done = 0, 3, False
        while not done:
            if step == 2:
                httpx.post(f"{client.url}/v1/sessions/{id}/resize", json=resized).raise_for_status()
                world_size = 2
            for rank in range(world_size):
                batch = client.step(id, step, rank=rank)
                client.report(id, [(step, np.full(len(batch.indices), step, np.float32))], rank=rank)
                told += [(step, rank, row) for row in batch.indices.tolist()]
            step, done = step + 1, batch.end_of_session
        for number in range(step):
            rows = client.step_rows(id, number)
            assert set(rows.losses.tolist()) == {number}
            found = zip([number] * len(rows.rows), rows.ranks.tolist(), rows.rows.tolist(), strict=True)
            assert list(found) == [visit for visit in told if visit[0] == number]
        for row in range(SIZE):
            visits = [(visit["step"], visit["rank"], row) for visit in client.row_visits(id, row)]
            assert visits == [visit for visit in told if visit[2] == row]


def test_chosen_rows_come_with_their_logits(live: Callable[..., Any]) -> None:
    with Client(live().url) as client:
        id = client.create_session(
            "jest",
            size=40,
            batch_size=10,
            world_size=2,
            epochs=2,
            id="chosen",
            parameters={"joint": False, "filter_ratio": 0.5},
        ).id
        parts = [client.step(id, 0, rank=rank) for rank in range(2)]
        before = client.step_rows(id, 0)
        assert (before.chosen, len(before.rows), before.scores) == (False, 20, None)
        for rank in range(2):
            body = {"rank": rank, "step": 0, "scores": np.arange(10.0).tolist()}
            httpx.post(f"{client.url}/v1/sessions/{id}/choices", json=body)
        chosen = [client.choose(id, 0, rank=rank) for rank in range(2)]
        for rank, share in enumerate(chosen):
            client.report(id, [(0, share.scores)], rank=rank)
        rows = client.step_rows(id, 0)
        assert rows.chosen is True
        np.testing.assert_array_equal(rows.rows, np.concatenate([share.indices for share in chosen]))
        assert rows.scores is not None
        np.testing.assert_array_equal(rows.scores, np.concatenate([share.scores for share in chosen]))
        np.testing.assert_array_equal(rows.losses, rows.scores)
        trained = {int(row): place for place, row in enumerate(rows.rows)}
        for row in np.concatenate([part.indices for part in parts]).tolist():
            visit = client.row_visits(id, row)[0]
            assert (visit["step"], visit["chosen"]) == (0, row in trained)
            if row in trained:
                place = trained[row]
                found = [visit[name] for name in ("rank", "position", "loss", "score")]
                wanted = (rows.ranks, rows.positions, rows.losses, rows.scores)
                assert found == [column[place].item() for column in wanted]


def test_what_cannot_be_looked_up_is_refused(live: Callable[..., Any], assert_problem: Callable[..., Any]) -> None:
    with Client(live().url) as client, httpx.Client(base_url=client.url) as http:
        id = client.create_session("infobatch", size=SIZE, batch_size=30, world_size=RANKS, epochs=4, id="old").id
        path = f"/v1/sessions/{id}"
        assert_problem(http.get(f"{path}/steps/0/rows"), 409, "epoch-not-open")
        assert http.get(f"{path}/rows/0").json()["visits"] == []
        assert http.get(f"{path}/spikes").json()["spikes"] == []
        train(client, id, 0, 2, np.random.default_rng(0))
        client.step(id, 2)
        assert_problem(http.get(f"{path}/steps/3/rows"), 409, "epoch-not-open")
        assert_problem(http.get(f"{path}/steps/9/rows"), 409, "epoch-not-open")
        assert_problem(http.get(f"{path}/steps/0/rows?rank=2"), 422, "bad-rank")
        assert_problem(http.get(f"{path}/steps/0/rows?values=true"), 422, "bad-dataset")
        assert_problem(http.get(f"{path}/rows/{SIZE}"), 422, "bad-row")
        assert_problem(http.get("/v1/sessions/none/steps/0/rows"), 404, "not-found")
        client.restore(client.checkpoint(id), "copy")
        answer = http.get("/v1/sessions/copy/steps/0/rows")
        assert "starts at epoch 2" in assert_problem(answer, 410, "before-base")["detail"]
        assert_problem(http.get("/v1/sessions/copy/rows/0?first=1"), 410, "before-base")
        assert http.get("/v1/sessions/copy/rows/0").json()["first_epoch"] == 2
        assert http.get("/v1/sessions/copy/spikes").json()["spikes"] == []


def test_visits_come_in_pages_of_epochs_and_both_clients_put_them_together(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url) as client:
        id = client.create_session("acquisition", size=SIZE, batch_size=30, world_size=RANKS, epochs=6).id
        told = train(client, id, 0, 6, np.random.default_rng(0))
        page = httpx.get(f"{server.url}/v1/sessions/{id}/rows/7?limit=2").json()
        assert ([visit["epoch"] for visit in page["visits"]], page["next"]) == ([0, 1], 2)
        page = httpx.get(f"{server.url}/v1/sessions/{id}/rows/7?first=2&limit=2").json()
        assert ([visit["epoch"] for visit in page["visits"]], page["next"]) == ([2, 3], 4)
        wanted = [visit[6] for visit in told if visit[4] == 7]
        assert [visit["loss"] for visit in client.row_visits(id, 7)] == wanted

    async def ask() -> None:
        async with AsyncClient(server.url) as other:
            assert [visit["loss"] for visit in await other.row_visits(id, 7)] == wanted
            assert (await other.step_rows(id, 5)).epoch == 5
            assert await other.spikes(id) == []

    asyncio.run(ask())


def test_a_look_back_leaves_the_epochs_in_memory_as_they_are(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url) as client:
        id = client.create_session("infobatch", size=SIZE, batch_size=30, world_size=RANKS, epochs=6).id
        train(client, id, 0, 6, np.random.default_rng(0))
        session = server.app.state.service.sessions.in_memory[0].session
        held = [session.epoch(number) for number in range(6)]
        client.step_rows(id, 0)
        client.row_visits(id, 7)
        assert all(a is b for a, b in zip(held, [session.epoch(number) for number in range(6)], strict=True))


@pytest.fixture(scope="module")
def spiked(live: Callable[..., Any]) -> tuple[Any, int]:
    """A server with a session "spiked" whose step 30 stands out because of one row; and that row."""
    server = live()
    with Client(server.url) as client:
        client.create_session("random", size=400, batch_size=5, world_size=RANKS, id="spiked")
        bad = -1
        for step in range(40):
            for rank in range(RANKS):
                batch = client.step("spiked", step, rank=rank)
                losses = np.linspace(0.9, 1.1, 5).astype(np.float32)
                if (step, rank) == (30, 1):
                    losses[3], bad = 50, int(batch.indices[3])
                client.report("spiked", [(step, losses)], rank=rank)
    return server, bad


def test_the_row_behind_a_spike(spiked: tuple[Any, int]) -> None:
    server, bad = spiked
    with Client(server.url) as client:
        (spike,) = client.spikes("spiked")
        assert (spike["step"], spike["losses"], spike["unknown"]) == (30, 10, 0)
        assert spike["rows"][0]["row"] == bad
        assert spike["rows"][0]["loss"] == 50
        assert [visit["step"] for visit in client.row_visits("spiked", bad)] == [30]
    page = httpx.get(f"{server.url}/v1/sessions/spiked/spikes?first=0&limit=20").json()
    assert (page["spikes"], page["first"], page["end"], page["next"]) == ([], 0, 20, 20)


def curation(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["trace", *arguments])


def test_the_command_says_the_same_over_http_and_from_the_store(spiked: tuple[Any, int]) -> None:
    server, bad = spiked
    http, store = ("--url", server.url), ("--store", str(server.settings.store))
    for question in (["--step", "30", "--rank", "1"], ["--row", str(bad)], ["--spikes"]):
        asked = [curation("spiked", *question, "--json", *where) for where in (http, store)]
        assert [done.exit_code for done in asked] == [0, 0], asked
        first, second = (json.loads(done.stdout) for done in asked)
        assert first == second
    assert f"{bad} (1) 50" in curation("spiked", "--spikes", *http).stdout
    refused = curation("none", "--row", "1", *store, "--json")
    assert refused.exit_code == 1
    assert "there is no session 'none'" in refused.stderr
    assert curation("spiked", "--row", "1", "--spikes").exit_code == 2
    away = curation("spiked", "--row", "1", "--url", "http://127.0.0.1:9", "--json")
    assert "--store looks without it" in away.stderr
