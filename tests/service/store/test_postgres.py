"""PostgreSQL for real: two servers over one store, and a database that dies."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curation.pair import Pair
from curation.selectors.jest import JEST
from curation.service.access.tokens import issue_token, renew_token
from curation.service.client import Client, ServiceError
from curation.service.manager.memory import openings
from curation.service.manager.progress import missing_reports
from curation.service.session.caller import ANYONE
from curation.service.store import Store
from curation.service.store.audit import read_audit
from curation.service.store.tokens import revoke_token


@pytest.fixture(scope="module")
def replicas(live: Callable[..., Any], database: Any) -> list[str]:
    return [str(live(store=database.get_uri()).url) for _ in range(2)]


def loss(indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return ((indices * 7919) % 101 / 101).astype(np.float32)


@pytest.mark.parametrize("on_missing", ["wait", "skip"])
def test_replicas_agree_at_every_step(replicas: list[str], on_missing: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(url, patience=30)) for url in replicas]
        agree_at_every_step(clients, on_missing)


def agree_at_every_step(clients: list[Client], on_missing: str) -> None:
    ranks = 4
    session = (
        clients[0]
        .create_session("infobatch", size=192, batch_size=8, epochs=4, world_size=ranks, seed=2, on_missing=on_missing)
        .id
    )
    seen: dict[tuple[int, int], Any] = {}
    errors: list[Exception] = []
    barrier = threading.Barrier(ranks)

    def train(rank: int) -> None:
        step, reports = 0, []
        try:
            while True:
                batch = clients[(rank + step) % 2].step(session, step, rank=rank, reports=reports)
                again = clients[(rank + step + 1) % 2].step(session, step, rank=rank, reports=reports)
                assert np.array_equal(batch.indices, again.indices)
                assert np.array_equal(batch.weights, again.weights)
                seen[rank, step] = batch
                reports = [(step, loss(batch.indices))]
                if batch.end_of_epoch:
                    clients[rank % 2].report(session, reports, rank=rank)
                    barrier.wait(60)
                if batch.end_of_session:
                    return
                step += 1
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    for epoch in range(4):
        given = np.concatenate([batch.indices for batch in seen.values() if batch.epoch == epoch])
        assert len(np.unique(given)) == len(given)
    assert [client.session(session).open_epochs for client in clients] == [4, 4]
    states = [client.checkpoint(session) for client in clients]
    assert states[0] == states[1]


def test_what_one_replica_changes_the_other_knows(replicas: list[str]) -> None:
    one, two = (Client(url, patience=0) for url in replicas)
    session = one.create_session("infobatch", size=16, batch_size=8, epochs=3).id
    first = two.step(session, 0)
    two.report(session, [(0, loss(first.indices)), (1, loss(one.step(session, 1).indices))])
    assert one.step(session, 2).epoch == two.step(session, 2).epoch == 1
    generation = one.session(session).generation
    assert one.rewind(session, 1).generation == generation + 1
    with pytest.raises(ServiceError, match="missing-reports"):
        two.step(session, 2)
    with pytest.raises(ServiceError, match="stale-generation"):
        two.step(session, 0, generation=generation)
    assert two.session(session).generation == generation + 1
    two.delete(session)
    with pytest.raises(ServiceError, match="not-found"):
        one.step(session, 0)
    one.close()
    two.close()


def test_replicas_know_the_same_tokens_and_quotas(live: Callable[..., Any], database: Any) -> None:
    database.psql("CREATE DATABASE owners;")
    url = database.get_uri(database="owners")
    store = Store(url)
    token, old = issue_token(store, "trainer", frozenset({"select"}), owner="vision")
    replicas = [live(store=url, token_seconds=0, owner_sessions=20).url for _ in range(2)]
    with contextlib.ExitStack() as stack:
        before = [stack.enter_context(Client(url, token=old, patience=0)) for url in replicas]
        session = before[0].create_session("random", size=10, batch_size=2).id
        new = renew_token(store, token.id, grace=600)[1]
        after = [stack.enter_context(Client(url, token=new, patience=0)) for url in replicas]
        for client in (*before, *after):
            client.step(session, 0)
        made: list[str] = []

        def create(client: Client) -> None:
            with contextlib.suppress(ServiceError):
                made.extend(client.create_session("random", size=10, batch_size=2).id for _ in range(20))

        threads = [threading.Thread(target=create, args=(client,)) for client in (*before, *after)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(made) == 19
        with pytest.raises(ServiceError, match="has 20 sessions, as many as it may"):
            after[1].create_session("random", size=10, batch_size=2)
        stranger = issue_token(store, "stranger", frozenset({"select"}))[1]
        for url in replicas:
            with Client(url, token=stranger, patience=0) as other, pytest.raises(ServiceError, match="not-found"):
                other.step(session, 0)
        assert renew_token(store, token.id, grace=0, lasts=600)[0].expires is not None
        for client in after:
            with pytest.raises(ServiceError, match="when it was rotated"):
                client.step(session, 0)
        assert revoke_token(store, ANYONE, token.id)
        acts = [entry.act for entry in read_audit(store, limit=1000)]
        assert (acts.count("session.create"), acts[0]) == (20, "token.revoke")
    store.close()


def test_one_replica_resizes_to_more_ranks_and_the_other_takes_them(replicas: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(Client(url, patience=0)) for url in replicas)
        session = one.create_session("infobatch", size=60, batch_size=4, epochs=2, world_size=2).id
        two.step(session, 0)
        one.resize(session, 5, generation=two.session(session).generation, from_step=0)
        assert set(two.batches(session, 0, ranks=[0, 4])) == {0, 4}


def test_one_replica_resizes_and_the_other_hands_out_what_is_left(replicas: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(Client(url, patience=0)) for url in replicas)
        parameters = {"prune_ratio": 0.0}
        options: dict[str, Any] = {"size": 60, "batch_size": 4, "epochs": 2, "world_size": 3, "parameters": parameters}
        session = one.create_session("infobatch", **options).id
        rows = [take_and_report(client, session, rank, 0) for rank, client in ((0, one), (1, two))]
        late = two.step(session, 0, rank=2)
        before = two.session(session).generation
        assert one.resize(session, 2, generation=before, from_step=1).from_step == 1
        for client in (two, one):
            with pytest.raises(ServiceError, match="stale-generation"):
                client.report(session, [(0, loss(late.indices))], rank=2, generation=before)
            with pytest.raises(ServiceError, match="resized at step 1"):
                client.report(session, [(0, loss(late.indices))], rank=2)
        assert two.resize(session, 2, generation=before, from_step=1).generation == one.session(session).generation
        end = one.step(session, 1).epoch_end
        for step in range(1, end):
            rows += [take_and_report(client, session, rank, step) for rank, client in ((0, two), (1, one))]
        assert sorted(np.concatenate(rows)) == list(range(60))
        assert one.step(session, end).epoch == two.step(session, end, rank=1).epoch == 1
        assert one.checkpoint(session) == two.checkpoint(session)


def take_and_report(client: Client, session: str, rank: int, step: int) -> np.ndarray[Any, Any]:
    batch = client.step(session, step, rank=rank)
    client.report(session, [(step, loss(batch.indices))], rank=rank)
    return batch.indices


def test_what_one_replica_stores_the_other_shows(replicas: list[str]) -> None:
    one, two = (Client(url, patience=0) for url in replicas)
    with one, two:
        session = one.create_session("infobatch", size=64, batch_size=4, world_size=2, epochs=2).id
        rows = np.zeros(4, np.float32)
        for step in range(8):
            one.step(session, step)
            one.report(session, [(step, rows)])
            with pytest.raises(ServiceError, match="missing-reports") as refused:
                two.step(session, 8)
            assert refused.value.members["missing_count"] == 15 - step
        two.report(session, [(step, rows) for step in range(8)], rank=1)
        for client in (one, two):
            deadline = time.monotonic() + 30  # what other replicas store is counted at most once a second
            while [rank["reports"] for rank in client.session(session).raw["ranks"]] != [8, 8]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert one.step(session, 8).epoch == two.step(session, 8).epoch == 1


def test_upkeep_of_the_store(replicas: list[str], database: Any, tmp_path: Path) -> None:
    from curation.service.store import Store
    from curation.service.store.maintenance.backup import make_backup
    from curation.service.store.maintenance.check import check_store
    from curation.service.store.maintenance.vacuum import vacuum_store
    from curation.service.store.sqlite.ownership import StoreError

    store = Store(database.get_uri())
    with Client(replicas[0], patience=0) as client:
        session = client.create_session("infobatch", size=16, batch_size=4, epochs=4).id
        for step in range(12):
            indices = client.step(session, step).indices
            client.report(session, [(step, np.zeros(len(indices), np.float32))])
        assert check_store(store).problems == []
        assert client.rewind(session, 5).open_epochs == 2
        assert check_store(store).problems == []
        client.delete(session)
        with pytest.raises(ServiceError, match="not-found"):
            client.session(session)
    assert vacuum_store(store).online
    with pytest.raises(StoreError, match="pg_dump"):
        make_backup(store, tmp_path / "copy")
    store.close()


def test_no_replica_refuses_what_the_store_allows(replicas: list[str]) -> None:
    one, two = (Client(url, patience=0) for url in replicas)
    options: dict[str, Any] = {"size": 32, "batch_size": 8, "epochs": 2, "id": "refused", "non_finite": "reject"}
    with one, two:
        one.create_session("infobatch", **options)
        for step in range(4):
            two.step("refused", step)
        for _ in range(5):
            generation = one.rewind("refused", 1).generation
            assert two.step("refused", 1, generation=generation).generation == generation
            assert one.step("refused", 1, generation=generation).generation == generation
        two.report("refused", [(step, loss(one.step("refused", step).indices)) for step in range(4)])
        first = one.step("refused", 4)
        two.report("refused", [(4, loss(first.indices))])
        last = first.epoch_end - 1
        assert all(client.step("refused", last).end_of_session for client in (one, two))
        one.change("refused", epochs=3, non_finite="keep")
        assert not any(client.step("refused", last).end_of_session for client in (two, one))
        two.report("refused", [(5, np.full(len(two.step("refused", 5).indices), np.nan))])
        one.delete("refused")
        new = one.create_session("infobatch", **{**options, "batch_size": 4}).generation
        assert len(two.step("refused", 0, generation=new).indices) == 4
        with pytest.warns(UserWarning, match="first report counts"):
            two.report("refused", [(0, np.ones(4)), (0, np.zeros(4))])


def test_a_replica_sees_what_another_one_was_sent_while_it_waits(replicas: list[str]) -> None:
    one, two = (Client(url, patience=30) for url in replicas)
    with one, two, ThreadPoolExecutor(3) as pool:
        session = one.create_session("infobatch", size=24, batch_size=8, epochs=4, world_size=3).id
        for epoch, change in enumerate(
            [
                lambda: two.report(session, [(0, np.ones(8))], rank=2),
                lambda: two.close_epoch(session, 1),
                lambda: two.change(session, on_missing="skip"),
            ]
        ):
            assert two.step(session, epoch).epoch == epoch
            work = [
                pool.submit(one.step, session, epoch + 1, rank=rank, reports=[(epoch, np.ones(8))]) for rank in range(2)
            ]
            time.sleep(0.3)
            assert not any(one.done() for one in work)
            change()
            assert [one.result(30).epoch for one in work] == [epoch + 1] * 2


def test_a_report_that_another_replica_took_meanwhile_is_not_missing(
    replicas: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(replicas[0], patience=0) as one, Client(replicas[1], patience=0) as other:
        session = one.create_session("infobatch", size=8, batch_size=4, epochs=2, world_size=2).id
        one.step(session, 0)

        def look(*given: Any) -> Any:
            monkeypatch.setattr(openings, "missing_reports", missing_reports)
            missing = missing_reports(*given)
            other.report(session, [(0, np.ones(4))], rank=1)
            return missing

        monkeypatch.setattr(openings, "missing_reports", look)
        assert one.step(session, 1, reports=[(0, np.ones(4))]).epoch == 1


def test_replicas_make_one_choice(replicas: list[str]) -> None:
    rng = np.random.default_rng(0)
    learner, reference = (Pair(*rng.normal(size=(2, 64, 4)).astype(np.float32)) for _ in range(2))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(url, patience=30)) for url in replicas]
        session = clients[0].create_session("jest", size=64, batch_size=8, world_size=4, seed=1).id
        chosen: dict[tuple[int, int], Any] = {}

        def train(rank: int) -> None:
            for step in range(2):
                rows = clients[rank % 2].step(session, step, rank=rank).indices
                pairs = [Pair(pair.a[rows], pair.b[rows], 5.0, -5.0) for pair in (learner, reference)]
                chosen[step, rank] = clients[rank // 2].choose(session, step, *pairs, rank=rank)

        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for step in range(2):
            rows = np.concatenate([clients[0].step(session, step, rank=rank).indices for rank in range(4)])
            pairs = [Pair(pair.a[rows], pair.b[rows], 5.0, -5.0) for pair in (learner, reference)]
            expected = JEST().select(*pairs, generator=np.random.default_rng((1, 0, 32 * (step + 1)))).indices
            assert np.array_equal(np.concatenate([chosen[step, rank].positions for rank in range(4)]), expected)
            for client in clients:
                again = [client.choose(session, step, rank=rank).indices for rank in range(4)]
                assert np.array_equal(np.concatenate(again), rows[expected])
        assert clients[1].rewind(session, 1).raw["spec"] == clients[0].session(session).raw["spec"]
        with pytest.raises(ServiceError, match="not-sent"):
            clients[0].choose(session, 1)


def test_a_dead_database_gives_503_and_comes_back(live: Callable[..., Any], database: Any) -> None:
    url = live(store=database.get_uri()).url
    with Client(url, patience=0) as client, httpx.Client(base_url=url, timeout=30) as http:
        session = client.create_session("infobatch", size=16, batch_size=8, epochs=3).id
        batch = client.step(session, 0)
        report = {"step": 1, "reports": [{"step": 0, "losses": loss(batch.indices).tolist()}]}
        database.stop()
        for path in ("/readyz", "/v1/sessions"):
            answer = http.get(path)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
        assert "the store takes no writes: connection" in http.get("/readyz").json()["detail"]
        answer = http.post(f"/v1/sessions/{session}/steps", json=report)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:curation:problem:store-unavailable")
        assert answer.headers["retry-after"]
        assert http.get("/healthz").status_code == 200
        database.ensure_postgres_running()
        deadline = time.monotonic() + 30  # readiness is looked at once a second
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert http.post(f"/v1/sessions/{session}/steps", json=report).status_code == 200


def test_the_dashboard_and_the_flight_recorder_read_it(replicas: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(url)) for url in replicas]
        for number in range(3):
            clients[0].create_session("infobatch", size=40, batch_size=10, epochs=3, world_size=2, id=f"Shown_{number}")
        rows = []
        for step in range(4):
            for rank, client in enumerate(clients):
                batch = client.step("Shown_0", step, rank=rank)
                client.report("Shown_0", [(step, loss(batch.indices))], rank=rank)
                rows += [(batch.epoch, step, rank, row) for row in batch.indices.tolist()]
        for client in clients:
            found = client.step_rows("Shown_0", 1)
            assert [row for row in rows if row[1] == 1] == [
                (0, 1, rank, row) for rank, row in zip(found.ranks.tolist(), found.rows.tolist(), strict=True)
            ]
            np.testing.assert_array_equal(found.losses, loss(found.rows))
            visits = [(visit["epoch"], visit["step"], visit["rank"], 7) for visit in client.row_visits("Shown_0", 7)]
            assert [visit for visit in visits if visit[1] < 4] == [row for row in rows if row[3] == 7]
            assert client.spikes("Shown_0") == []
            query = {"search": "shown_", "limit": 2, "sort": "name"}
            page = httpx.get(f"{client.url}/dashboard/sessions", params=query).json()
            assert ([line["id"] for line in page["sessions"]], page["total"]) == (["Shown_0", "Shown_1"], 3)
            second = httpx.get(f"{client.url}/dashboard/sessions", params={**query, "after": page["next"]}).json()
            assert [line["id"] for line in second["sessions"]] == ["Shown_2"]
            assert page["sessions"][0]["standing"]["step"] == 3
            assert httpx.get(f"{client.url}/dashboard/sessions/Shown_0").json()["losses"]["points"][-1]["step"] == 3
        step, batch = 4, None
        while batch is None or not batch.end_of_session:  # epochs that the other replica knows nothing of
            for rank in range(2):
                batch = clients[0].step("Shown_0", step, rank=rank)
                clients[0].report("Shown_0", [(step, loss(batch.indices))], rank=rank)
            step += 1
        line = httpx.get(f"{clients[1].url}/dashboard/sessions?search=Shown_0").json()["sessions"][0]
        assert (line["standing"]["status"], line["standing"]["done"]) == ("finished", 1)
