"""Running losses: held back where they were made, until they are needed."""

import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from curation import InfoBatch
from curation.selectors.importance import Importance
from curation.selectors.losses import WAITING

every_kind = pytest.mark.parametrize(
    "make", [partial(InfoBatch, size=4000, epochs=9), partial(Importance, size=4000)], ids=["infobatch", "importance"]
)


class Watched(torch.Tensor):
    """A tensor that counts what makes a device wait: copies to the host."""

    waits = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("cpu", "numpy", "item", "tolist", "__array__"):
            Watched.waits += 1
        return super().__torch_function__(function, types, args, kwargs)


def watched(values: Any) -> torch.Tensor:
    Watched.waits = 0
    return torch.as_tensor(values, dtype=torch.float32).as_subclass(Watched)


@every_kind
def test_losses_merged_once_an_epoch_stay_on_their_device(make: Any) -> None:
    info = make(sync="epoch")
    losses = watched(np.random.default_rng(0).exponential(size=4000))
    for start in range(0, 400, 4):
        info.update(torch.arange(start, start + 4), losses[start : start + 4])
    assert Watched.waits == 0
    assert np.array_equal(info.scores[:400], losses[:400].numpy())
    assert np.isnan(info.scores[400:]).all()


@every_kind
def test_what_waits_on_the_device_is_bounded(make: Any) -> None:
    info = make(sync="epoch")
    losses = watched(np.ones(4))
    for _ in range(WAITING - 1):
        info.update([1, 2, 3, 4], losses)
    assert Watched.waits == 0
    info.update([1, 2, 3, 4], losses)
    assert Watched.waits > 0


@every_kind
def test_both_ways_to_merge_give_the_same(make: Any) -> None:
    by_step, by_epoch = make(), make(sync="epoch")
    rng = np.random.default_rng(0)
    for _ in range(2 * WAITING // 3):
        rows, losses = rng.integers(0, 4000, 3), torch.from_numpy(rng.exponential(size=3))
        for info in (by_step, by_epoch):
            info.update(rows, losses)
        # What comes in belongs to the caller, who may write over it.
        losses.zero_()
        rows[:] = 0
    other = make(sync="epoch")
    other.load_state_dict(pickle.loads(pickle.dumps(by_epoch)).state_dict())
    for info in (other, copy.deepcopy(by_epoch), by_epoch):
        assert np.array_equal(info.scores, by_step.scores, equal_nan=True)
        assert np.array_equal(info.weights(np.arange(4000)), by_step.weights(np.arange(4000)))
    for info in (by_step, by_epoch):
        info.begin(1)
    if isinstance(by_step, InfoBatch):
        assert by_epoch.epoch(1).indices.tolist() == by_step.epoch(1).indices.tolist()


def test_the_length_of_the_next_epoch_counts_them() -> None:
    info = InfoBatch(size=100, epochs=9, sync="epoch")
    info.begin(0)
    info.update(np.arange(100), np.arange(100.0))
    kept = info.kept(1)
    assert kept < 100
    assert info.steps_remaining(1) < 800
    info.begin(1)
    assert info.kept(1) == kept
    info.update([99], [np.nan])
    with pytest.warns(RuntimeWarning, match="the loss of example 99 is nan"):
        assert info.nonfinite == 1


@pytest.mark.gpu
@every_kind
def test_no_step_waits_for_the_gpu(make: Any) -> None:
    info = make(sync="epoch")
    losses = torch.rand(64, device="cuda", requires_grad=True)
    info.update(np.arange(64), losses)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        info.update(np.arange(64), losses).mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(info.scores[:64], losses.detach().cpu().numpy())


@every_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pending_indices": torch.tensor([4000]), "pending_losses": torch.ones(1)}, "pending_indices .*4000"),
        ({"pending_indices": torch.tensor([1, 2]), "pending_losses": torch.ones(1)}, "pending_losses has 1"),
    ],
)
def test_losses_held_back_that_fit_no_example_are_refused(make: Any, change: dict[str, Any], message: str) -> None:
    info = make(sync="epoch")
    with pytest.raises(ValueError, match=message):
        info.load_state_dict({**info.state_dict(), **change})
