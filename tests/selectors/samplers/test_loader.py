"""InfoBatch's loader: it counts what it handed out, so its state is right with any number of workers."""

from typing import Any

import numpy as np
import pytest
import torch

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader

SIZE = 60
LOSSES = torch.from_numpy(np.random.default_rng(0).exponential(size=SIZE))


def made(**options: Any) -> InfoBatchLoader:
    return InfoBatchLoader(torch.arange(SIZE) * 2, InfoBatch(size=SIZE, epochs=20), batch_size=8, **options)


def train(loader: InfoBatchLoader, steps: int | None = None) -> list[list[int]]:
    """The rest of an epoch, or ``steps`` of it."""
    batches = []
    for index, values in loader:
        assert torch.equal(values, 2 * index)
        loader.info.update(index, LOSSES[index] * (1 + loader.epoch))
        batches.append(index.tolist())
        if len(batches) == steps:
            break
    return batches


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("taken", [0, 2, None], ids=["start", "middle", "end"])
def test_goes_on_with_the_very_next_batch(workers: int, taken: int | None) -> None:
    options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    whole = made()
    epochs = [train(whole) for _ in range(4)]
    assert [sum(map(len, epoch)) < SIZE for epoch in epochs] == [False, True, True, True]
    first = made(**options)
    assert train(first) == epochs[0]
    first.set_epoch(1)
    if taken != 0:
        train(first, taken)
    second = made(**options)
    second.load_state_dict(first.state_dict())
    assert second.epoch == (2 if taken is None else 1)
    assert len(second) == len(epochs[2] if taken is None else epochs[1][taken:])
    if taken is not None:
        assert train(second) == epochs[1][taken:]
    assert train(second) == epochs[2]
    second.set_epoch(3)
    assert train(second) == epochs[3]


def test_a_dataset_of_another_size_and_a_state_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="the dataset has 3 items, but InfoBatch was made for size=60"):
        InfoBatchLoader([1, 2, 3], InfoBatch(size=SIZE, epochs=2), batch_size=2)
    with pytest.raises(ValueError, match="missing .'sampler'"):
        made().load_state_dict({"version": 1, "info": {}})
