"""``RemoteBatchSampler`` in a real DataLoader, against a server that dies and a state that is carried on."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from curation.selectors.infobatch import InfoBatch
from curation.selectors.samplers.base import Indexed
from curation.service.client import Client
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
