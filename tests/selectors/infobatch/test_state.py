"""InfoBatch's state: what it holds, what it refuses, and that all ranks have the same."""

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from curation import InfoBatch
from curation.selectors.infobatch import cosine, one_cycle
from curation.selectors.samplers import InfoBatchSampler


def trained(losses: np.ndarray, **options: object) -> InfoBatch:
    """An InfoBatch that has seen ``losses``, one for each example, in epoch 0."""
    info = InfoBatch(**{"size": len(losses), "epochs": 100, **options})
    info.epoch(0)
    info.update(np.arange(len(losses)), losses)
    return info


class TestState:
    def test_an_epoch_stands_although_its_losses_come_in(self) -> None:
        info = trained(np.random.default_rng(0).exponential(size=300))
        first = info.epoch(1)
        info.update(first.indices, np.random.default_rng(1).exponential(size=len(first)))
        again = info.epoch(1)
        assert np.array_equal(first.indices, again.indices)
        assert np.array_equal(first.weights, again.weights)

    def test_a_view_of_the_scores_follows_a_loaded_state(self) -> None:
        losses = np.random.default_rng(0).exponential(size=30).astype(np.float32)
        fresh = InfoBatch(size=30, epochs=100)
        view = fresh.scores
        fresh.load_state_dict(trained(losses).state_dict())
        np.testing.assert_array_equal(view, losses)

    def test_seeds_and_epochs_differ(self) -> None:
        losses = np.random.default_rng(0).exponential(size=300)
        orders = {
            tuple(trained(losses, seed=seed).epoch(epoch).indices.tolist())
            for seed, epoch in itertools.product(range(3), range(1, 4))
        }
        assert len(orders) == 9

    def test_gradients_flow_through_the_weights(self) -> None:
        info = trained(np.array([1, 1, 1, 9], np.float32))
        index = info.epoch(1).indices
        losses = torch.ones(len(index), requires_grad=True)
        info.update(index, losses).sum().backward()
        assert losses.grad is not None
        assert np.array_equal(losses.grad.numpy(), info.weights(index))

    @pytest.mark.gpu
    def test_losses_may_lie_on_a_gpu(self) -> None:
        info = trained(np.array([1, 1, 1, 9], np.float32))
        index = torch.from_numpy(info.epoch(1).indices).cuda()
        losses = torch.ones(len(index), device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weighted = info.update(index, losses)
        assert weighted.device == losses.device
        assert np.array_equal(weighted.detach().cpu().numpy(), info.weights(index))

    def test_the_state_is_the_callers(self) -> None:
        info = trained(np.arange(10.0))
        state = info.state_dict()
        keys = set(state)
        info.load_state_dict(state)
        info.update([0], [99.0])
        assert set(state) == keys
        assert state["scores"][0] == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": 11}, "size=11"),
            ({"seed": 1}, "seed=1"),
            ({"prune_ratio": [0.3]}, r"prune_ratio=\[0.3\]"),
            ({"surplus": 1}, "unknown .'surplus'"),
            ({"version": 9}, "version 9"),
            ({"scores": torch.zeros(3)}, "shape"),
            ({"codes": torch.zeros(3)}, r"codes has shape \(3,\), not \(10,\)"),
            (
                {"codes": torch.tensor([1] * 9 + [3])},
                r"codes gives example 9 the code 3, but with 1 bands they are 0 to 2",
            ),
            ({"codes": torch.tensor([1] * 9 + [257])}, "codes gives example 9 the code 257"),
            ({"weights": torch.ones(2)}, r"weights has shape \(2,\), not \(3,\)"),
        ],
    )
    def test_a_state_of_something_else_is_refused(self, change: dict[str, object], message: str) -> None:
        info = trained(np.arange(10.0))
        with pytest.raises(ValueError, match=message):
            info.load_state_dict({**info.state_dict(), **change})

    def test_a_state_without_a_key_is_refused(self) -> None:
        info = trained(np.arange(10.0))
        state = info.state_dict()
        del state["codes"]
        with pytest.raises(ValueError, match="missing .'codes'"):
            info.load_state_dict(state)

    def test_an_example_that_the_epoch_dropped_is_refused(self) -> None:
        info = trained(np.array([1] * 50 + [9] * 50, np.float32))
        dropped = np.setdiff1d(np.arange(100), info.epoch(1).indices)[0]
        with pytest.raises(ValueError, match=f"example {dropped} is not in epoch 1"):
            info.update([dropped], [1.0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 0}, "size"),
            ({"epochs": 0}, "epochs"),
            ({"prune_ratio": 1.0}, r"\[0, 1\)"),
            ({"delta": 1.5}, "delta"),
            ({"quantiles": (0.8, 0.5), "prune_ratio": (0.1, 0.2)}, "rise"),
            ({"quantiles": (0.5, 0.8)}, "2 bands"),
            ({"form": "dice"}, "coins"),
            ({"sync": "never"}, "step"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_parameters_are_checked(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            InfoBatch(**{"size": 10, "epochs": 2, **options})

    def test_indices_that_are_floats_are_refused(self) -> None:
        info = InfoBatch(size=10, epochs=2)
        for index in (torch.tensor([1.0]), np.array([1.0])):
            with pytest.raises(TypeError, match="integers"):
                info.update(index, [1.0])
        with pytest.raises(ValueError, match="index 10 is out of range"):
            info.update([10], [1.0])

    def test_memory_is_five_bytes_a_candidate(self) -> None:
        info = InfoBatch(size=10_000, epochs=2)
        info.begin(0)
        buffer = io.BytesIO()
        torch.save(info.state_dict(), buffer)
        assert 50_000 <= len(buffer.getvalue()) < 60_000

    def test_curves(self) -> None:
        assert (cosine(0), cosine(0.5), cosine(1)) == pytest.approx((1, 0.5, 0))
        assert (one_cycle(0), one_cycle(0.3), one_cycle(1)) == pytest.approx((0.04, 1, 1e-4))


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    losses = torch.from_numpy(np.random.default_rng(0).exponential(size=1000).astype(np.float32))
    for sync in ("step", "epoch"):
        info = InfoBatch(size=1000, epochs=4, sync=sync)
        sampler = InfoBatchSampler(info, batch_size=32)
        seen = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            info.synchronize()
            length, batches = len(sampler), list(sampler)
            assert len(batches) == length
            seen.append(batches)
            for batch in batches:
                info.update(torch.tensor(batch), losses[batch].to(torch.float64) if rank else losses[batch])
        info.synchronize()
        order = torch.tensor(info.epoch(2).indices)
        torch.save(
            {"seen": seen, "scores": torch.from_numpy(info.scores.copy()), "order": order},
            f"{folder}/{sync}-{rank}.pt",
        )
    dist.destroy_process_group()


def test_all_ranks_know_all_losses(tmp_path: Path) -> None:
    """Three gloo processes with uneven last batches; each must derive what one process derives."""
    mp.spawn(_rank, args=(3, str(tmp_path)), nprocs=3)
    alone = trained(np.random.default_rng(0).exponential(size=1000).astype(np.float32), epochs=4)
    one = alone.epoch(1)
    for sync in ("step", "epoch"):
        ranks = [torch.load(tmp_path / f"{sync}-{rank}.pt", weights_only=True) for rank in range(3)]
        together = sorted(i for rank in ranks for batch in rank["seen"][1] for i in batch)
        assert together == sorted(one.indices.tolist())
        assert {len(rank["seen"][1]) for rank in ranks} == {math.ceil(len(one) / 96)}
        for rank in ranks:
            assert np.array_equal(rank["scores"].numpy(), alone.scores)
            assert np.array_equal(rank["order"].numpy(), alone.epoch(2).indices)
