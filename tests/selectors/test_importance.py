"""Importance's losses and state; its draws are tested with their sampler."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from curation.selectors.importance import Importance, chances

LOSSES = np.array([1, 3, 2, 4], np.float32)


def trained(**options: Any) -> Importance:
    importance = Importance(**{"size": 4, "seed": 3, **options})
    importance.update(np.arange(4), LOSSES)
    return importance


def test_losses_that_are_not_finite_are_unknown_counted_and_warned_of_once() -> None:
    importance = trained()
    with pytest.warns(RuntimeWarning, match=r"example 2 is nan: .* Importance\.nonfinite counts") as caught:
        importance.update([2, 1], [np.nan, np.inf])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importance.update([2], [-np.inf])
    assert importance.nonfinite == 3
    np.testing.assert_array_equal(importance.scores, [1, np.nan, np.nan, 4])
    assert importance.draw(1, 8).shape == (8,)


def test_scores_are_a_view_that_cannot_be_written() -> None:
    importance = trained()
    with pytest.raises(ValueError, match="read-only"):
        importance.scores[0] = 1
    importance.update([0], [9.0])
    assert importance.scores[0] == 9


def test_a_state_goes_on_where_it_was_saved() -> None:
    importance = trained()
    with pytest.warns(RuntimeWarning, match="example 0"):
        importance.update([0], [np.inf])
    importance.begin(2)
    other = Importance(size=4, seed=3)
    other.load_state_dict(importance.state_dict())
    assert other.nonfinite == 1
    np.testing.assert_array_equal(other.draw(2, 20), importance.draw(2, 20))
    np.testing.assert_array_equal(other.scores, importance.scores)


def test_a_state_from_before_losses_were_counted_loads() -> None:
    old = {
        "version": 1, "size": 4, "uniform": 0.2, "seed": 3, "epoch": 1,
        "scores": torch.from_numpy(LOSSES), "chances": torch.from_numpy(chances(LOSSES, 0.2)),
    }  # fmt: skip
    importance = Importance(size=4, seed=3)
    importance.load_state_dict(old)
    expected = trained()
    np.testing.assert_array_equal(importance.draw(1, 20), expected.draw(1, 20))
    assert importance.nonfinite == 0
    assert set(old) == {"version", "size", "uniform", "seed", "epoch", "scores", "chances"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 5}, "size=5"),
        ({"surplus": 1}, "unknown .'surplus'"),
        ({"scores": torch.zeros(3)}, "scores has shape"),
        ({"chances": torch.zeros(3)}, "chances has shape"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, object], message: str) -> None:
    importance = trained()
    before = importance.state_dict()
    with pytest.raises(ValueError, match=message):
        importance.load_state_dict({**before, **change})
    after = importance.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in ("scores", "chances"))


def test_sync_is_checked() -> None:
    with pytest.raises(ValueError, match="sync must be"):
        Importance(size=3, sync="never")  # type: ignore[arg-type]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    out = []
    for sync in ("step", "epoch"):
        importance = Importance(size=4, seed=3, sync=sync)  # type: ignore[arg-type]
        importance.update([rank, rank + 2], LOSSES[[rank, rank + 2]])
        held = int(np.isnan(importance.scores).sum())
        out.append((held, importance.draw(1, 20).tolist(), importance.scores.tolist()))
    torch.save(out, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_losses_at_each_step_or_at_the_epochs_start(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        step, epoch = torch.load(tmp_path / f"{rank}.pt")
        assert (step[0], epoch[0]) == (0, 4)
        assert step[1:] == epoch[1:] == (trained().draw(1, 20).tolist(), LOSSES.tolist())


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1.0, 1e38])
def test_chances_do_not_depend_on_the_size_of_losses(size: float) -> None:
    losses = np.tile(np.array([1, 3, 0, 2], np.float32) * np.float32(size), 2_000)
    share = losses.astype(np.float64) / losses.sum(dtype=np.float64)
    np.testing.assert_allclose(chances(losses, 0.2), 0.8 * share + 0.2 / len(losses), rtol=1e-5)
