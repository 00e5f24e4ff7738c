"""Super-batches of ranks that die and join: every row is in one of them an epoch, of the ranks there are."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import distributed

from curation.pair import Pair
from curation.service.client import Client, RemoteJESTBatchSampler, ServiceError

SIZE, EPOCHS = 100, 3
SIDES = torch.randn(4, SIZE, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def server(live: Callable[..., Any]) -> Any:
    return live(max_pairs=64)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, patience=0) as client:
        yield client


def create(client: Client, world_size: int, **options: Any) -> str:
    parameters = {"filter_ratio": 0.5, "joint": False}
    given = {"size": SIZE, "batch_size": 8, "epochs": EPOCHS, "parameters": parameters} | options
    return client.create_session("jest", world_size=world_size, **given).id


def choose(client: Client, session: str, step: int, ranks: range) -> tuple[list[int], list[int], Any]:
    """The rows of a super-batch, those that count of what is chosen of it, and the last rank's share."""
    rows = [client.step(session, step, rank=rank).indices for rank in ranks]
    *others, last = (rank for rank in ranks if len(rows[rank]))
    for rank in others:
        with pytest.raises(ServiceError, match="missing-reports"):
            client.choose(session, step, scores=np.sin(rows[rank]), rank=rank)
    client.choose(session, step, scores=np.sin(rows[last]), rank=last)
    shares = [client.choose(session, step, rank=rank) for rank in ranks]
    for rank, share in zip(ranks, shares, strict=True):
        assert len(share.indices) > 0
        client.report(session, [(step, np.ones(len(share.indices)))], rank=rank)
    taken = [row for share in shares for row in share.indices[share.weights > 0].tolist()]
    return np.concatenate(rows).tolist(), taken, shares[-1]


def train(client: Client, session: str, step: int, most: int = 1 << 30) -> dict[int, list[int]]:
    """By epoch, the rows of the super-batches from a step on."""
    ranks, rows = range(client.session(session).world_size), dict[int, list[int]]()
    for number in range(step, step + most):
        handed_out, taken, last = choose(client, session, number, ranks)
        assert len(set(taken)) == len(taken) == max(1, round(len(handed_out) / 2))
        assert set(taken) <= set(handed_out)
        rows.setdefault(last.epoch, []).extend(handed_out)
        if last.end_of_session:
            break
    return rows


def added(*parts: dict[int, list[int]]) -> dict[int, list[int]]:
    """Rows by epoch, sorted."""
    return {epoch: sorted(row for part in parts for row in part.get(epoch, [])) for epoch in range(EPOCHS)}


WHOLE = {epoch: list(range(SIZE)) for epoch in range(EPOCHS)}


@pytest.mark.parametrize("ranks", [(3, 2), (2, 5), (1, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("at", [0, 1, 3, 7])
def test_every_row_is_in_one_super_batch_of_the_ranks_there_are(
    client: Client, ranks: tuple[int, int], at: int
) -> None:
    session = create(client, ranks[0])
    before = train(client, session, 0, at)
    client.step(session, at)
    info = client.resize(session, ranks[1], generation=client.session(session).generation, from_step=at)
    assert (info.world_size, info.from_step) == (ranks[1], at)
    first = len(client.step(session, at).indices)
    assert first == 8 or at > 0
    middle = train(client, session, at, 2)
    client.resize(session, ranks[0], generation=client.session(session).generation)
    assert client.session(session).from_step == at + 2
    assert added(before, middle, train(client, session, at + 2)) == WHOLE


def test_a_dead_rank_is_left_behind(server: Any, client: Client) -> None:
    session = create(client, 3)
    before = train(client, session, 0, 2)
    parts = [client.step(session, 2, rank=rank).indices for rank in range(3)]
    refused: list[ServiceError] = []

    generation = client.session(session).generation

    def wait() -> None:
        with Client(server.url, patience=20) as waiting:
            try:
                waiting.choose(session, 2, scores=np.sin(parts[0]), generation=generation)
            except ServiceError as error:
                refused.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not server.app.state.service.choices._begun:
        time.sleep(0.01)
    with pytest.raises(ServiceError, match="missing-reports"):
        client.choose(session, 2, scores=np.sin(parts[1]), rank=1)
    info = client.resize(session, 2, generation=generation)
    assert (info.from_step, info.world_size) == (2, 2)
    thread.join(30)
    assert [error.kind for error in refused] == ["stale-generation"]
    with pytest.raises(ServiceError, match="not-sent"):
        client.choose(session, 2, rank=1)
    with pytest.raises(ServiceError, match="bad-rank"):
        client.choose(session, 2, rank=2)
    assert added(before, train(client, session, 2)) == WHOLE


def test_choices_from_the_step_on_are_forgotten_and_a_skipped_super_batch_comes_again(client: Client) -> None:
    session = create(client, 2)
    train(client, session, 0, 3)
    generation = client.session(session).generation
    client.resize(session, 3, generation=generation, from_step=2)
    with pytest.raises(ServiceError, match="not-sent"):
        client.choose(session, 2)
    assert client.choose(session, 1, rank=1).step == 1
    client.report(session, [(1, np.ones(4))], rank=1)
    other = create(client, 2)
    taken = choose(client, other, 0, range(2))[0]
    skipped = [row for rank in range(2) for row in client.step(other, 1, rank=rank).indices.tolist()]
    client.resize(other, 1, generation=client.session(other).generation, from_step=2)
    rows = train(client, other, 2)
    assert set(skipped) <= set(rows[0])
    assert added({0: taken}, rows) == WHOLE
    again = client.rewind(other, 1)
    assert len(client.step(other, 1, rank=1, generation=again.generation).indices) == 8


@pytest.mark.parametrize("left", [1, 2, 4])
def test_fewer_rows_than_ranks_are_chosen_from_and_count_once(client: Client, http: httpx.Client, left: int) -> None:
    session = create(client, 1, size=8 + left, batch_size=4, epochs=1)
    before = train(client, session, 0, 2)
    info = client.resize(session, 3, generation=client.session(session).generation, from_step=2)
    assert info.raw["segments"][-1]["rows"] == left
    assert sorted(before[0] + train(client, session, 2)[0]) == list(range(8 + left))


def test_a_copy_goes_on_with_other_ranks(client: Client) -> None:
    session = create(client, 2)
    before = train(client, session, 0, 2)
    client.resize(session, 3, generation=client.session(session).generation)
    before = {0: before[0] + train(client, session, 2, 1)[0]}
    checkpoint = client.checkpoint(session)
    same, other = client.restore(checkpoint), client.restore(checkpoint, world_size=1)
    assert (same.world_size, same.from_step, other.world_size, other.from_step) == (3, 2, 1, 3)
    for copy in (same, other):
        assert client.choose(copy.id, 2, rank=2).indices.tolist() == client.choose(session, 2, rank=2).indices.tolist()
        assert added(before, train(client, copy.id, 3)) == WHOLE


def test_what_is_trained_on_and_traced_is_that_of_the_ranks_there_are(server: Any, client: Client) -> None:
    session = create(client, 2)
    train(client, session, 0, 1)
    client.resize(session, 5, generation=client.session(session).generation, from_step=1)
    rows, taken, _ = choose(client, session, 1, range(5))
    assert [epoch["trained"] for epoch in client.epochs(session)] == [8 + 20 + 22, 20 + 30, 20 + 30]
    traced = client.step_rows(session, 1)
    assert sorted(traced.rows.tolist()) == sorted(taken)
    assert set(traced.ranks.tolist()) == set(range(5))
    visits = client.row_visits(session, taken[0])
    assert [(visit["step"], visit["chosen"]) for visit in visits] == [(1, True)]
    skipped = next(row for row in rows if row not in taken)
    assert [(visit["step"], visit["chosen"]) for visit in client.row_visits(session, skipped)] == [(1, False)]


def test_ranks_that_a_session_could_not_be_made_for_are_refused(client: Client, live: Callable[..., Any]) -> None:
    session = create(client, 2)
    generation = client.session(session).generation
    with pytest.raises(ServiceError, match="9 × 8 rows is more than this server takes, 64"):
        client.resize(session, 9, generation=generation)
    small = create(client, 1, size=10, batch_size=1)
    with pytest.raises(ServiceError, match="bad-parameters.*1 rows are chosen for 3 ranks|2 rows are chosen for 3"):
        client.resize(small, 3, generation=client.session(small).generation)
    with Client(live(max_pairs=1000).url) as larger:
        other = create(larger, 2)
        larger.resize(other, 9, generation=larger.session(other).generation)
        checkpoint = larger.checkpoint(other)
    with pytest.raises(ServiceError, match="is more than this server takes, 64"):
        client.restore(checkpoint)


def test_the_sampler_goes_on_alone(server: Any) -> None:
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        with Client(server.url, patience=20) as client:
            session = create(client, 2, parameters={"filter_ratio": 0.5, "chunks": 2})
            scored: list[int] = []

            def score(rows: Any) -> tuple[Pair, Pair]:
                scored.extend(rows.tolist())
                sides = SIDES[:, torch.from_numpy(rows)]
                return Pair(sides[0], sides[1]), Pair(sides[2], sides[3])

            ranks = [RemoteJESTBatchSampler(client, session, score=score, rank=rank, prefetch=0) for rank in (0, 1)]
            threads = [threading.Thread(target=lambda one=one: next(iter(one))) for one in ranks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            alone = RemoteJESTBatchSampler(client, session, score=score, elastic=True)
            for _ in range(EPOCHS):
                for batch in alone:
                    alone.update(torch.tensor(batch), torch.ones(len(batch)))
            assert (client.session(session).world_size, client.session(session).from_step) == (1, 1)
            assert sorted(scored) == sorted([*range(SIZE)] * EPOCHS)
    finally:
        distributed.destroy_process_group()
