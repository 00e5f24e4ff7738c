"""InfoBatch: a plain reference, unbiasedness, and one test for each fault of the public implementation."""

import io
import itertools
import math
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import InfoBatch
from curation.selectors import _pruning
from curation.selectors.infobatch import by_progress, cosine, one_cycle
from curation.selectors.samplers import Indexed, InfoBatchSampler


def trained(losses: np.ndarray, **options: object) -> InfoBatch:
    """An InfoBatch that has seen ``losses``, one for each example, in epoch 0."""
    info = InfoBatch(**{"size": len(losses), "epochs": 100, **options})
    info.epoch(0)
    info.update(np.arange(len(losses)), losses)
    return info


def run(info: InfoBatch, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    chosen = info.epoch(epoch)
    info.update(chosen.indices, rng.exponential(size=len(chosen)))
    return chosen.indices, chosen.weights


class TestAgainstThePaper:
    def test_the_first_epoch_prunes_nothing(self) -> None:
        chosen = InfoBatch(size=1000, epochs=10).epoch(0)
        assert sorted(chosen.indices) == list(range(1000))
        assert (chosen.weights == 1).all()

    def test_what_is_kept_follows_the_rule(self) -> None:
        """The plain reference: below the mean, kept ones weigh 1/(1-r); all others are kept at weight 1."""
        losses = np.random.default_rng(0).exponential(size=5000).astype(np.float32)
        chosen = trained(losses, prune_ratio=0.3).epoch(1)
        low = losses < losses.astype(np.float64).mean()
        expected = dict.fromkeys(np.flatnonzero(~low).tolist(), 1.0)
        kept = dict(zip(chosen.indices.tolist(), chosen.weights.tolist(), strict=True))
        assert expected.items() <= kept.items()
        of_low = {i: w for i, w in kept.items() if i not in expected}
        assert low[list(of_low)].all()
        assert set(of_low.values()) == {float(np.float32(1 / 0.7))}
        n = int(low.sum())
        assert abs(len(of_low) - 0.7 * n) < 5 * math.sqrt(n * 0.21)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    @pytest.mark.parametrize("ratio", [0.5, 0.3])
    def test_unbiased_over_every_outcome(self, form: str, ratio: float) -> None:
        """E[Σ w·x] = Σ x, by the exact probability of each subset that some seed produced."""
        losses = np.array([0.1, 0.2, 0.3, 0.35, 9, 8], np.float32)
        low = [0, 1, 2, 3]
        x = np.array([3.0, -5, 7, 11, 2, 1])
        sums: dict[tuple[int, ...], float] = {}
        for seed in range(600):
            chosen = trained(losses, prune_ratio=ratio, form=form, seed=seed).epoch(1)
            assert {4, 5} <= set(chosen.indices.tolist())
            subset = tuple(sorted(set(chosen.indices.tolist()) - {4, 5}))
            sums[subset] = float(chosen.weights.astype(np.float64) @ x[chosen.indices])
        if form == "coins":
            chance = {s: (1 - ratio) ** len(s) * ratio ** (4 - len(s)) for s in _subsets(low)}
            assert len(sums) > 8
        else:
            count = 4 - math.floor(ratio * 4)
            chance = {s: 1 / math.comb(4, count) for s in _subsets(low) if len(s) == count}
            assert set(sums) == set(chance)
        unseen = {s: x[4:].sum() + x[list(s)].sum() / (1 - ratio) for s in chance if s not in sums}
        mean = sum(p * {**unseen, **sums}[s] for s, p in chance.items())
        assert mean == pytest.approx(x.sum(), rel=1e-6)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    def test_every_subset_comes_as_often_as_it_should(self, form: str) -> None:
        """Pearson's chi-square over the subsets of four low examples; the error rate is 1 in 10,000."""
        from scipy.stats import chi2

        losses, draws = np.array([1, 1, 1, 1, 90], np.float32), 2000
        info = trained(losses, form=form, epochs=10**6)
        seen: dict[tuple[int, ...], int] = {}
        for epoch in range(1, draws + 1):
            info.begin(epoch)
            subset = tuple(np.flatnonzero(info.mask(epoch)[:4]).tolist())
            seen[subset] = seen.get(subset, 0) + 1
        possible = [s for s in _subsets(range(4)) if form == "coins" or len(s) == 2]
        assert set(seen) <= set(possible)
        expected = draws / len(possible)
        statistic = sum((seen.get(s, 0) - expected) ** 2 / expected for s in possible)
        assert statistic < chi2.ppf(1 - 1e-4, len(possible) - 1)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    def test_unbiased_on_average_at_size(self, form: str) -> None:
        """Mean over 300 epochs within 5 standard errors."""
        rng = np.random.default_rng(1)
        losses, x = rng.exponential(size=2000).astype(np.float32), rng.normal(size=2000)
        info = trained(losses, form=form, prune_ratio=0.37, epochs=10**6)
        sums = []
        for epoch in range(1, 301):
            chosen = info.epoch(epoch)
            sums.append(chosen.weights.astype(np.float64) @ x[chosen.indices])
        assert abs(np.mean(sums) - x.sum()) < 5 * np.std(sums) / math.sqrt(300)

    def test_an_exact_draw_leaves_at_least_one(self) -> None:
        chosen = trained(np.array([1, 9], np.float32), form="exact", prune_ratio=0.9).epoch(1)
        assert sorted(chosen.indices) == [0, 1]
        assert (chosen.weights == 1).all()

    def test_quantile_bands_have_ratios_of_their_own(self) -> None:
        losses = np.random.default_rng(2).permutation(10_000).astype(np.float32)
        chosen = trained(losses, quantiles=(0.5, 0.8), prune_ratio=(0.75, 0.25), form="exact").epoch(1)
        kept = losses[chosen.indices]
        assert (kept < 5000).sum() == pytest.approx(1250, abs=2)
        assert ((kept >= 5000) & (kept < 8000)).sum() == pytest.approx(2250, abs=3)
        assert (kept >= 8000).sum() == pytest.approx(2000, abs=2)
        assert chosen.weights.sum() == pytest.approx(10_000, rel=1e-5)
        assert set(np.round(chosen.weights, 2).tolist()) == {4.0, np.float32(1.33).item(), 1.0}

    @given(
        losses=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60),
        ratio=st.floats(0, 0.95),
        form=st.sampled_from(["coins", "exact"]),
        epoch=st.integers(1, 80),
    )
    @settings(deadline=None, max_examples=60)
    def test_invariants(self, losses: list[float], ratio: float, form: str, epoch: int) -> None:
        values = np.array(losses, np.float32)
        info = trained(values, prune_ratio=ratio, form=form)
        chosen = info.epoch(epoch)
        assert len(set(chosen.indices.tolist())) == len(chosen)
        high = np.flatnonzero(values >= np.mean(values, dtype=np.float64))
        assert set(high.tolist()) <= set(chosen.indices.tolist())
        if form == "exact":
            assert chosen.weights.sum() == pytest.approx(len(values), rel=1e-4)
        assert len(chosen) == info.kept(epoch)

    def test_the_order_is_uniform(self) -> None:
        """Chi-square over the 24 orders of four examples, and position means at a size of many buckets."""
        from scipy.stats import chi2

        counts: dict[tuple[int, ...], int] = {}
        for seed in range(4800):
            order = tuple(_pruning.shuffled_kept(np.ones(4, np.uint8), (seed,)).tolist())
            counts[order] = counts.get(order, 0) + 1
        assert len(counts) == 24
        assert sum((c - 200) ** 2 / 200 for c in counts.values()) < chi2.ppf(1 - 1e-4, 23)
        large = _pruning.shuffled_kept(np.ones(200_000, np.uint8), (7,))
        assert np.array_equal(np.sort(large), np.arange(200_000))
        thirds = large.reshape(20, -1).mean(axis=1)
        assert np.abs(thirds - 100_000).max() < 5 * 200_000 / math.sqrt(12 * 10_000)
        assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.02


class TestFaultsOfThePublicCode:
    def test_the_loader_class_is_not_patched(self) -> None:
        before = torch.utils.data.dataloader._BaseDataLoaderIter.__next__
        info = InfoBatch(size=10, epochs=2)
        list(torch.utils.data.DataLoader(Indexed(range(10)), batch_sampler=InfoBatchSampler(info, batch_size=5)))
        assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__ is before

    def test_a_loader_that_fetches_ahead_credits_the_right_examples(self) -> None:
        info = InfoBatch(size=40, epochs=2)
        loader = torch.utils.data.DataLoader(
            Indexed(torch.arange(40.0)), batch_sampler=InfoBatchSampler(info, batch_size=4)
        )
        ahead = list(loader)
        for index, value in ahead:
            info.update(index, value * 2)
        assert np.array_equal(info.scores, np.arange(40) * 2)

    @pytest.mark.parametrize("drop_last", [False, True])
    def test_calling_iter_again_does_not_start_an_epoch(self, drop_last: bool) -> None:
        info = InfoBatch(size=10, epochs=5)
        sampler = InfoBatchSampler(info, batch_size=4, drop_last=drop_last)
        for _ in range(5):
            iter(sampler)
        batches = list(sampler)
        assert [len(b) for b in batches] == ([4, 4] if drop_last else [4, 4, 2])
        assert info.current == 0

    @pytest.mark.parametrize("epochs", range(1, 60))
    def test_annealing_starts_on_time_and_stays(self, epochs: int) -> None:
        info = InfoBatch(size=4, epochs=epochs)
        assert info.annealing_from == epochs * 7 // 8
        info.epoch(0)
        info.update(np.arange(4), np.array([1.0, 1, 1, 9]))
        for epoch in range(info.annealing_from, epochs):
            chosen = info.epoch(epoch)
            assert sorted(chosen.indices) == [0, 1, 2, 3]
            assert (chosen.weights == 1).all()

    def test_a_share_that_floats_cannot_hold_is_not_rounded_down(self) -> None:
        assert InfoBatch(size=1, epochs=100, delta=0.29).annealing_from == 29

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_indices_never_travel_as_losses(self, dtype: torch.dtype) -> None:
        """float32 corrupts positions above 2^24, bfloat16 above 256."""
        size = 2**24 + 10
        info = InfoBatch(size=size, epochs=2)
        index = torch.tensor([257, 2**24 + 1, size - 1])
        info.update(index, torch.tensor([1.0, 2.0, 4.0], dtype=dtype))
        assert np.flatnonzero(np.isfinite(info.scores)).tolist() == index.tolist()
        assert info.scores[index.numpy()].tolist() == [1, 2, 4]

    def test_losses_of_bfloat16_give_weights_of_float32(self) -> None:
        info = trained(np.array([1, 1, 9], np.float32), prune_ratio=0.3, seed=3)
        index = info.epoch(1).indices
        weighted = info.update(index, torch.ones(len(index), dtype=torch.bfloat16))
        assert weighted.dtype == torch.float32
        assert set(weighted.tolist()) == {1.0, float(np.float32(1 / 0.7))}

    def test_global_random_state_is_left_alone(self) -> None:
        numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        info = trained(np.arange(100, dtype=np.float32))
        list(InfoBatchSampler(info, batch_size=7))
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_before)

    def test_it_pickles(self) -> None:
        info = trained(np.random.default_rng(0).exponential(size=100))
        info.begin(1)
        copy = pickle.loads(pickle.dumps(info))
        assert np.array_equal(copy.epoch(1).indices, info.epoch(1).indices)
        assert np.array_equal(copy.epoch(2).weights, info.epoch(2).weights)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_one_bad_loss_is_named_kept_and_left_out_of_the_mean(self, bad: float) -> None:
        losses = np.array([1, 2, 3, 10, bad] * 40, np.float32)
        with pytest.warns(RuntimeWarning, match=r"loss of example 4 is -?(nan|inf)"):
            info = trained(losses)
        assert info.nonfinite == 40
        chosen = info.epoch(1)
        low = np.isin(np.arange(200) % 5, [0, 1, 2])
        assert set(np.flatnonzero(~low).tolist()) <= set(chosen.indices.tolist())
        assert (chosen.weights[~low[chosen.indices]] == 1).all()
        assert (chosen.weights[low[chosen.indices]] == 2).all()
        assert 30 < low[chosen.indices].sum() < 90
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            info.update([4], [bad])

    @pytest.mark.parametrize("losses", [torch.tensor(0.5), 0.5, np.float32(0.5)])
    def test_an_averaged_loss_is_noticed(self, losses: object) -> None:
        with pytest.raises(ValueError, match='reduction="none"'):
            InfoBatch(size=10, epochs=2).update([1, 2], losses)

    @pytest.mark.parametrize("shape", [(2, 3), (3,), (1,)])
    def test_a_loss_of_another_shape_is_noticed(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="one loss an example"):
            InfoBatch(size=10, epochs=2).update([1, 2], torch.ones(shape))

    def test_a_resumed_run_knows_its_scores(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        info = InfoBatch(size=500, epochs=10)
        for epoch in range(3):
            run(info, epoch, rng)
        info.begin(3)
        info.update(info.epoch(3).indices[:50], rng.exponential(size=50))
        torch.save(info.state_dict(), tmp_path / "state.pt")
        other = InfoBatch(size=500, epochs=10)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for epoch in (3, 4, 5):
            a, b = info.epoch(epoch), other.epoch(epoch)
            assert np.array_equal(a.indices, b.indices)
            assert np.array_equal(a.weights, b.weights)
            assert info.progress() == other.progress()

    def test_streams_are_filtered_by_a_stable_id(self) -> None:
        info = trained(np.arange(100, dtype=np.float32))
        info.begin(1)
        rows = [{"id": i, "text": f"row {i}"} for i in reversed(range(100))]
        kept = list(info.filter(iter(rows), "id"))
        assert [i for i, _ in kept] == sorted(info.epoch(1).indices.tolist(), reverse=True)
        assert all(row["text"] == f"row {i}" for i, row in kept)
        assert list(info.filter(rows, lambda row: row["id"])) == kept
        assert len(info.update([i for i, _ in kept], np.ones(len(kept)))) == len(kept)
        with pytest.raises(ValueError, match="id 100 is out of range"):
            list(info.filter([{"id": 100}], "id"))

    def test_a_learning_rate_schedule_ends_where_the_training_ends(self) -> None:
        rng = np.random.default_rng(0)
        info = InfoBatch(size=400, epochs=8)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = by_progress(optimizer, info.progress, cosine)
        rates, steps = [], 0
        sampler = InfoBatchSampler(info, batch_size=10)
        for _ in range(8):
            for batch in sampler:
                info.update(batch, rng.exponential(size=len(batch)))
                optimizer.step()
                scheduler.step()
                rates.append(scheduler.get_last_lr()[0])
                steps += 1
        assert steps < 8 * 40
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(0, abs=1e-12)
        assert info.progress() == 1

    def test_steps_remaining_is_exact_now_and_expected_later(self) -> None:
        rng = np.random.default_rng(0)
        info = InfoBatch(size=4000, epochs=8, form="exact")
        info.begin(0)
        assert info.steps_remaining(10, world_size=1) == 8 * 400
        run(info, 0, rng)
        assert info.steps_remaining(10, world_size=1) == pytest.approx(6 * 275 + 400, rel=0.02)
        for epoch in range(1, 8):
            info.begin(epoch)
        assert info.steps_remaining(10, world_size=4) == 100
        run(info, 7, rng)
        assert info.steps_remaining(10, world_size=1) == 0


class TestState:
    def test_an_epoch_stands_although_its_losses_come_in(self) -> None:
        info = trained(np.random.default_rng(0).exponential(size=300))
        first = info.epoch(1)
        info.update(first.indices, np.random.default_rng(1).exponential(size=len(first)))
        again = info.epoch(1)
        assert np.array_equal(first.indices, again.indices)
        assert np.array_equal(first.weights, again.weights)

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


def _subsets(items: object) -> Iterator[tuple[int, ...]]:
    items = tuple(items)
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))
