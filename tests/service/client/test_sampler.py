"""``RemoteBatchSampler`` in a real DataLoader, against a server that dies and a state that is carried on."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from curation.selectors.infobatch import InfoBatch
from curation.selectors.samplers.base import Indexed
from curation.service.client import Client, ServiceError
from curation.service.client.sampler import RemoteBatchSampler

SIZE, BATCH, EPOCHS = 200, 16, 4


def losses_of(index: torch.Tensor, epoch: int) -> torch.Tensor:
    return torch.sin(index.double() * 3 + epoch).float().abs().requires_grad_()


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live().url)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 3), (2, 2)])
def test_training_through_the_service_is_training_with_the_library(url: str, workers: int, prefetch: int) -> None:
    with Client(url) as client:
        session = client.create_session("infobatch", size=SIZE, batch_size=BATCH, epochs=EPOCHS, seed=4).id
        sampler = RemoteBatchSampler(client, session, prefetch=prefetch)
        data = Indexed(TensorDataset(torch.arange(SIZE)))
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
        info = InfoBatch(size=SIZE, epochs=EPOCHS, seed=4)
        for epoch in range(EPOCHS):
            selection = info.epoch(epoch)
            assert len(sampler) == -(-len(selection) // BATCH)
            given = []
            for index, _ in loader:
                losses = losses_of(index, epoch)
                weighted = sampler.update(index, losses)
                assert torch.allclose(weighted, info.update(index, losses))
                weighted.mean().backward()
                given += index.tolist()
            assert given == selection.indices.tolist()
        assert list(sampler) == []
        assert len(sampler) == 0
        ranks = client.session(session).raw["ranks"]
        assert ranks[0]["reports"] == client.session(session).total_steps


@pytest.mark.parametrize("done", [0, 1, 7, 13, 20])
def test_a_state_goes_on_with_the_very_next_batch(url: str, done: int) -> None:
    def run(sampler: RemoteBatchSampler, most: int | None) -> list[list[int]]:
        given: list[list[int]] = []
        while most is None or len(given) < most:
            batches = list(given)
            for batch in sampler:
                index = torch.tensor(batch)
                sampler.update(index, losses_of(index, 0))
                given.append(batch)
                if len(given) == most:
                    return given
            if len(given) == len(batches):
                return given
        return given

    with Client(url) as client:
        options: dict[str, Any] = {"size": SIZE, "batch_size": BATCH, "epochs": 3, "seed": 8}
        whole = run(RemoteBatchSampler(client, client.create_session("infobatch", **options).id), None)
        session = client.create_session("infobatch", **options).id
        first = RemoteBatchSampler(client, session, prefetch=2)
        before = run(first, done)
        state = pickle.loads(pickle.dumps(first.state_dict()))
        second = pickle.loads(pickle.dumps(first))
        second.load_state_dict(state)
        assert before + run(second, None) == whole
        second.client.close()
        older = RemoteBatchSampler(client, session)
        older.load_state_dict(state, rewind=True)
        assert run(older, None) == whole[done:]


def test_mistakes_are_named(url: str) -> None:
    with Client(url) as client:
        session = client.create_session("infobatch", size=SIZE, batch_size=BATCH, epochs=2).id
        sampler = RemoteBatchSampler(client, session)
        batch = torch.tensor(next(iter(sampler)))
        assert np.array_equal(sampler.weights(batch), np.ones(BATCH))
        with pytest.raises(ValueError, match="no batch that waits"):
            sampler.update(batch + 1, torch.ones(BATCH))
        with pytest.raises(ValueError, match="one a row"):
            sampler.update(batch, torch.ones(()))
        with pytest.raises(ValueError, match="not a state of rank 0"):
            sampler.load_state_dict({"version": 1, "session": "other", "rank": 0, "step": 0})
        with pytest.raises(ValueError, match="prefetch"):
            RemoteBatchSampler(client, session, prefetch=-1)


def test_training_survives_the_servers_death(live: Callable[..., Any]) -> None:
    server = live()
    with Client(server.url) as client:
        session = client.create_session("random", size=SIZE, batch_size=BATCH, epochs=2).id
        sampler = RemoteBatchSampler(client, session)
        given: list[int] = []
        for epoch in range(2):
            for number, batch in enumerate(sampler):
                if number == 5 and epoch == 0:
                    server.stop()
                    back = threading.Timer(0.3, server.start)
                    back.start()
                sampler.update(torch.tensor(batch), torch.ones(len(batch)))
                given += batch
        back.join()
    assert sorted(given) == sorted(2 * list(range(SIZE)))


def test_one_unknown_loss_costs_one_example(url: str) -> None:
    with Client(url) as client:
        session = client.create_session("infobatch", size=SIZE, batch_size=BATCH, epochs=2).id
        sampler, unknown = RemoteBatchSampler(client, session, prefetch=0), -1
        for number, batch in enumerate(sampler):
            losses = torch.zeros(len(batch))
            if number == 3:
                losses[5], unknown = float("nan"), batch[5]
                losses[6] = float("inf")
            sampler.update(batch, losses)
        assert sampler.state_dict()["step"] == number + 1
        reports = httpx.get(f"{url}/v1/sessions/{session}/losses").json()["reports"]
        assert [report["unknown"] for report in reports] == [2 * (step == 3) for step in range(number + 1)]
        assert unknown in [row for batch in sampler for row in batch]


def test_a_session_that_rejects_unknown_losses_says_so_at_once_and_goes_on(url: str) -> None:
    with Client(url) as client:
        session = client.create_session("infobatch", size=SIZE, batch_size=BATCH, epochs=2, non_finite="reject").id
        sampler = RemoteBatchSampler(client, session)
        batches = iter(sampler)
        batch = next(batches)
        losses = torch.ones(BATCH)
        losses[2] = float("nan")
        with pytest.raises(ValueError, match=r"loss 2 of step 0 is nan, and session .* rejects those"):
            sampler.update(batch, losses)
        sampler.update(batch, losses.nan_to_num())
        sampler.update(next(batches), torch.ones(BATCH))
        assert sampler.state_dict()["step"] == 2


def test_a_report_that_is_refused_is_dropped_and_the_others_are_sent(url: str) -> None:
    with Client(url) as client:
        session = client.create_session("infobatch", size=SIZE, batch_size=BATCH, epochs=2).id
        sampler = RemoteBatchSampler(client, session, prefetch=0)
        client.change(session, non_finite="reject")
        batches = iter(sampler)
        sampler.update(next(batches), torch.ones(BATCH))
        batch = next(batches)
        sampler.update(batch, torch.full((BATCH,), float("nan")))
        with pytest.raises(ServiceError, match="bad-report: the report of rank 0, step 1: loss 0 is nan") as refused:
            next(batches)
        assert refused.value.__notes__ == ["It was dropped, and is not sent again."]
        assert sampler.state_dict()["step"] == 2
        sampler.update(next(iter(sampler)), torch.ones(BATCH))
        assert sampler.state_dict()["step"] == 3
        assert client.session(session).raw["ranks"][0]["reports"] == 2


def test_a_state_of_another_session_of_the_same_id_is_refused(url: str) -> None:
    with Client(url) as client:
        options: dict[str, Any] = {"size": SIZE, "batch_size": BATCH, "id": "reused"}
        client.create_session("random", **options)
        state = RemoteBatchSampler(client, "reused").state_dict()
        checkpoint = client.checkpoint("reused")
        client.delete("reused")
        client.create_session("random", seed=1, **options)
        with pytest.raises(ValueError, match="created anew, from other parameters or tables"):
            RemoteBatchSampler(client, "reused").load_state_dict(state)
        client.delete("reused")
        client.restore(checkpoint, id="reused")
        for known in (state, {name: state[name] for name in ("version", "session", "rank", "step")}):
            RemoteBatchSampler(client, "reused").load_state_dict(known)


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("moved", ["another iteration", "load_state_dict"])
def test_an_iteration_that_was_left_behind_says_so(url: str, moved: str, prefetch: int) -> None:
    with Client(url) as client:
        session = client.create_session("random", size=SIZE, batch_size=BATCH).id
        sampler = RemoteBatchSampler(client, session, prefetch=prefetch)
        state = sampler.state_dict()
        left = iter(sampler)
        for _ in range(2):
            sampler.update(torch.tensor(next(left)), torch.zeros(BATCH))
        if moved == "another iteration":
            next(iter(sampler))
        else:
            sampler.load_state_dict(state)
        with pytest.raises(RuntimeError, match="only the newest iteration goes on"):
            next(left)
        sampler.load_state_dict(state)
        assert sorted(row for batch in sampler for row in batch) == list(range(SIZE))
