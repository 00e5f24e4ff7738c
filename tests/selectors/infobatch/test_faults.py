"""InfoBatch: one test for each fault of the public implementation (METHODS.md lists them)."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import InfoBatch
from curation.selectors.infobatch import by_progress, cosine
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

    @given(
        size=st.integers(1, 60),
        batch_size=st.integers(1, 9),
        world_size=st.integers(1, 5),
        taken=st.integers(0, 9),
    )
    @settings(deadline=None, max_examples=100)
    def test_steps_remaining_are_those_of_the_sampler(
        self, size: int, batch_size: int, world_size: int, taken: int
    ) -> None:
        """A rest of fewer rows than ranks joins the step before: a plain ceiling counts one step too many."""
        size = max(size, world_size)
        info = InfoBatch(size=size, epochs=3, delta=0.0)
        ranks = [
            InfoBatchSampler(info, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        steps = [[*zip(*ranks, strict=True)] for _ in range(3)]
        info.begin(0)
        assert info.steps_remaining(batch_size, world_size=world_size) == sum(map(len, steps))
        taken = min(taken, len(steps[0]))
        for batches in steps[0][:taken]:
            for batch in batches:
                info.update(batch, np.ones(len(batch)))
        assert info.steps_remaining(batch_size, world_size=world_size) == sum(map(len, steps)) - taken
