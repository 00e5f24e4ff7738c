"""What each sampler yields, beyond resuming."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from curation import JEST, BatchPlan, InfoBatch, Pair, StochasticAcquisition
from curation.selectors.importance import Importance, chances
from curation.selectors.samplers import (
    AcquisitionSampler,
    ImportanceSampler,
    InfoBatchSampler,
    JESTBatchSampler,
    PlanBatchSampler,
    RandomBatchSampler,
)


class TestInfoBatchSampler:
    def test_batches_are_the_epoch_in_order(self) -> None:
        info = InfoBatch(size=50, epochs=4)
        sampler = InfoBatchSampler(info, batch_size=8)
        assert [i for batch in sampler for i in batch] == info.epoch(0).indices.tolist()

    def test_a_plan_that_does_not_say_what_may_meet_is_pruned_and_no_more(self) -> None:
        info = InfoBatch(size=64, epochs=4)
        info.begin(0)
        info.update(np.arange(64), np.where(np.arange(64) % 2, 9.0, 1.0))
        plan = BatchPlan.of_size(np.random.default_rng(0).permutation(64), 8)
        sampler = InfoBatchSampler(info, batch_size=8, plan=plan)
        sampler.set_epoch(1)
        length = len(sampler)
        batches = list(sampler)
        assert len(batches) == length
        kept = set(info.epoch(1).indices.tolist())
        assert batches == [[row for row in batch.tolist() if row in kept] for batch in plan]

    def test_a_position_in_a_plan_that_an_earlier_release_saved(self) -> None:
        """It counted rows, of batches that were cut in another way: between epochs both are the same."""
        plan = BatchPlan.of_size(np.arange(64), 8)
        saved = {"version": 1, "epoch": 0, "position": 0, "over": False, "size": 64, "seed": 0, "planned": True}
        for state, epoch in ((saved, 0), ({**saved, "position": 64, "over": True}, 1)):
            sampler = InfoBatchSampler(InfoBatch(size=64, epochs=4), batch_size=8, plan=plan)
            sampler.load_state_dict(state)
            assert sampler.epoch == epoch
            assert len(list(sampler)) == 8
        with pytest.raises(ValueError, match="by an earlier release in the middle of epoch 0 over a plan"):
            sampler.load_state_dict({**saved, "position": 16})
        other = InfoBatchSampler(sampler.info, batch_size=16, plan=plan)
        with pytest.raises(ValueError, match="the state has batch_size=8, but this InfoBatchSampler has batch_size=16"):
            other.load_state_dict(sampler.state_dict())

    def test_a_plan_for_more_examples_is_refused(self) -> None:
        sampler = InfoBatchSampler(InfoBatch(size=8, epochs=1), batch_size=2, plan=BatchPlan.of_size(np.arange(9), 3))
        with pytest.raises(ValueError, match="names example 8"):
            len(sampler)

    def test_a_position_without_its_losses_is_refused(self) -> None:
        sampler = InfoBatchSampler(InfoBatch(size=64, epochs=4), batch_size=8)
        next(iter(sampler))
        other = InfoBatchSampler(InfoBatch(size=64, epochs=4), batch_size=8)
        other.load_state_dict(sampler.state_dict())
        with pytest.raises(ValueError, match=r"info.load_state_dict\(\) too"):
            next(iter(other))

    @pytest.mark.parametrize(
        "options", [{"batch_size": 0}, {"batch_size": 2, "rank": 0}, {"batch_size": 2, "rank": 2, "world_size": 2}]
    )
    def test_parameters_are_checked(self, options: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"batch_size|rank"):
            InfoBatchSampler(InfoBatch(size=8, epochs=1), **options)

    def test_more_consumed_than_there_is_is_refused(self) -> None:
        sampler = InfoBatchSampler(InfoBatch(size=8, epochs=1), batch_size=2)
        next(iter(sampler))
        with pytest.raises(ValueError, match="this pass has 4"):
            sampler.state_dict(consumed=5)


class TestPlanBatchSampler:
    plan = BatchPlan(indices=np.arange(10), offsets=np.array([0, 3, 6, 10]))

    def test_batches_stay_whole(self) -> None:
        batches = list(PlanBatchSampler(self.plan, seed=1))
        assert sorted(batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
        assert list(PlanBatchSampler(self.plan, shuffle=False)) == [b.tolist() for b in self.plan]

    def test_epochs_and_seeds_shuffle_anew(self) -> None:
        plan = BatchPlan.of_size(np.arange(60), 2)
        orders = set()
        for seed in range(3):
            sampler = PlanBatchSampler(plan, seed=seed)
            orders |= {str(list(sampler)) for _ in range(3)}
        assert len(orders) == 9

    def test_rows_are_shared_among_ranks(self) -> None:
        samplers = [PlanBatchSampler(self.plan, split="rows", rank=r, world_size=2) for r in range(2)]
        with pytest.warns(UserWarning, match="do not divide by 2 ranks, so some ranks get one more, .* all_gather"):
            ranks = [list(sampler) for sampler in samplers]
        assert sorted([*a, *b] for a, b in zip(*ranks, strict=True)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
        even = [
            list(PlanBatchSampler(self.plan, shuffle=False, split="rows", remainder="drop", rank=r, world_size=2))
            for r in range(2)
        ]
        assert even == [[[0], [3], [6, 7]], [[1], [4], [8, 9]]]
        with pytest.raises(ValueError, match="would be its own negative"):
            PlanBatchSampler(self.plan, split="rows", remainder="repeat")
        with pytest.raises(ValueError, match="fewer rows than the 4 ranks"):
            list(PlanBatchSampler(self.plan, split="rows", rank=0, world_size=4))

    @pytest.mark.parametrize(
        ("options", "ranks"),
        [
            ({}, [[[0, 1, 2], [6, 7]], [[3, 4, 5], [8, 9]]]),
            ({"remainder": "drop"}, [[[0, 1, 2]], [[3, 4, 5]]]),
            ({"remainder": "repeat"}, [[[0, 1, 2], [6, 7, 8, 9]], [[3, 4, 5], [0, 1, 2]]]),
        ],
    )
    def test_batches_that_do_not_divide(self, options: dict[str, Any], ranks: list[list[list[int]]]) -> None:
        samplers = [PlanBatchSampler(self.plan, shuffle=False, rank=r, world_size=2, **options) for r in range(2)]
        assert [list(sampler) for sampler in samplers] == ranks

    def test_a_last_batch_of_fewer_rows_than_ranks_is_shared_together_with_the_step_before(self) -> None:
        plan = BatchPlan(indices=np.arange(11), offsets=np.array([0, 3, 6, 9, 11]))
        ranks = [list(PlanBatchSampler(plan, shuffle=False, rank=r, world_size=3)) for r in range(3)]
        assert ranks == [[[0], [6]], [[1, 2], [7, 8]], [[3, 4, 5], [9, 10]]]

    def test_options_are_checked(self) -> None:
        for options in ({"split": "halves"}, {"remainder": "keep"}):
            with pytest.raises(ValueError, match="must be"):
                PlanBatchSampler(self.plan, **options)
        with pytest.raises(TypeError, match="BatchPlan"):
            list(PlanBatchSampler([[1, 2]]))


class TestTooFewRowsForTheRanks:
    """No rank may get an empty batch, which no DataLoader collates, nor may one wait for another that has none."""

    plan = BatchPlan(indices=np.arange(3), offsets=np.array([0, 2, 3]))
    makers = pytest.mark.parametrize(
        "make",
        [
            lambda **options: RandomBatchSampler(size=3, batch_size=2, **options),
            lambda **options: RandomBatchSampler(size=3, batch_size=2, drop_last=True, **options),
            lambda **options: PlanBatchSampler(TestTooFewRowsForTheRanks.plan, **options),
            lambda **options: InfoBatchSampler(InfoBatch(size=3, epochs=2), batch_size=2, **options),
            lambda **options: ImportanceSampler(Importance(size=9), batch_size=2, draws=3, **options),
            lambda **options: AcquisitionSampler(
                np.ones(9), StochasticAcquisition(), size=9, batch_size=2, budget=3, **options
            ),
            lambda **options: JESTBatchSampler(RandomBatchSampler(size=3, batch_size=2), JEST(), embed, **options),
        ],
        ids=["random", "random-drop", "plan", "infobatch", "importance", "acquisition", "jest"],
    )

    @makers
    def test_an_epoch_raises_on_all_ranks_where_it_begins(self, make: Any) -> None:
        for rank in range(4):
            with pytest.raises(ValueError, match="epoch 0 has fewer rows than ranks, 3 for 4"):
                next(iter(make(rank=rank, world_size=4)))
            with pytest.raises(ValueError, match="train on fewer ranks"):
                len(make(rank=rank, world_size=4))

    @pytest.mark.parametrize(
        ("make", "taken"),
        [
            (lambda **options: RandomBatchSampler(size=10, batch_size=4, **options), 2),
            (lambda **options: PlanBatchSampler(BatchPlan.of_size(np.arange(10), 4), shuffle=False, **options), 2),
            (lambda **options: InfoBatchSampler(InfoBatch(size=10, epochs=2), batch_size=4, **options), 2),
        ],
    )
    def test_the_rest_of_an_epoch_on_more_ranks_goes_to_several_of_them(self, make: Any, taken: int) -> None:
        alone = make(rank=0, world_size=1)
        batches = iter(alone)
        done = [row for _ in range(taken) for row in next(batches)]
        state, rest = alone.state_dict(), next(batches)
        ranks = []
        for rank in range(4):
            sampler = make(rank=rank, world_size=4)
            sampler.load_state_dict(state)
            if isinstance(sampler, InfoBatchSampler):
                sampler.info.load_state_dict(alone.info.state_dict())
            assert len(sampler) == 1
            with pytest.warns(UserWarning, match="2 rows are left of epoch 0 for 4 ranks"):
                ranks.append(list(sampler))
            assert sampler.epoch == 1
        assert ranks == [[rest[:1]], [rest[:1]], [rest[1:]], [rest[1:]]]
        assert sorted(done + rest) == list(range(10))

    def test_the_rest_of_an_epoch_on_more_ranks_is_dropped_where_that_was_asked_for(self) -> None:
        options: dict[str, Any] = {"size": 10, "batch_size": 4, "drop_last": True}
        alone = RandomBatchSampler(**options)
        next(iter(alone))
        for rank in range(4):
            sampler = RandomBatchSampler(**options, rank=rank, world_size=4)
            sampler.load_state_dict(alone.state_dict())
            assert list(sampler) == []
            assert sampler.epoch == 1


class TestRandomBatchSampler:
    @pytest.mark.parametrize("size", [1, 50, 70_000])
    def test_every_candidate_comes_once_an_epoch_in_another_order(self, size: int) -> None:
        sampler = RandomBatchSampler(size=size, batch_size=64, seed=1)
        epochs = [[row for batch in sampler for row in batch] for _ in range(2)]
        assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 2
        assert size == 1 or epochs[0] != epochs[1]

    def test_an_epoch_over_a_billion_begins_at_once(self) -> None:
        sampler = RandomBatchSampler(size=10**9, batch_size=4)
        assert len(next(iter(sampler))) == 4
        assert len(pickle.dumps(sampler)) < 1000

    def test_a_whole_epoch_is_never_dropped(self) -> None:
        sampler = RandomBatchSampler(size=3, batch_size=4, drop_last=True)
        assert [len(batch) for batch in sampler] == [3]

    @pytest.mark.parametrize("options", [{"size": 0}, {"batch_size": 0}, {"seed": -1}, {"rank": 1}])
    def test_parameters_are_checked(self, options: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must|rank"):
            RandomBatchSampler(**({"size": 4, "batch_size": 2} | options))


class TestAcquisitionSampler:
    def test_draws_are_the_selectors(self) -> None:
        scores = np.random.default_rng(0).exponential(size=40)
        sampler = AcquisitionSampler(scores, StochasticAcquisition(beta=float("inf")), size=40, batch_size=10)
        assert [i for batch in sampler for i in batch] == np.argsort(-scores, kind="stable").tolist()

    def test_scores_are_read_at_each_draw(self) -> None:
        scores = np.arange(20, dtype=np.float64)
        sampler = AcquisitionSampler(scores, StochasticAcquisition(beta=float("inf")), size=20, batch_size=5, budget=10)
        batches = iter(sampler)
        assert next(batches) == [19, 18, 17, 16, 15]
        scores[:] = -np.arange(20) + 100
        assert next(batches) == [0, 1, 2, 3, 4]
        assert next(batches, None) is None
        assert sampler.drawn.tolist() == [19, 18, 17, 16, 15, 0, 1, 2, 3, 4]

    def test_an_epoch_drawn_at_once_reads_the_scores_at_its_start(self) -> None:
        scores = np.arange(20, dtype=np.float64)
        options: dict[str, Any] = {"size": 20, "batch_size": 5, "budget": 10, "redraw": "epoch"}
        sampler = AcquisitionSampler(scores, StochasticAcquisition(beta=float("inf")), **options)
        batches = iter(sampler)
        assert next(batches) == [19, 18, 17, 16, 15]
        assert sampler.drawn.tolist() == [19, 18, 17, 16, 15]
        scores[:] = -np.arange(20) + 100
        state = pickle.loads(pickle.dumps(sampler.state_dict()))
        assert next(batches) == [14, 13, 12, 11, 10]
        resumed = AcquisitionSampler(scores, StochasticAcquisition(beta=float("inf")), **options)
        resumed.load_state_dict(state)
        assert resumed.drawn.tolist() == [19, 18, 17, 16, 15]
        assert list(resumed) == [[14, 13, 12, 11, 10]]
        assert list(resumed) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]

    def test_a_state_goes_on_with_the_other_way_to_redraw(self) -> None:
        scores = np.random.default_rng(0).exponential(size=24)
        for before, after in (("step", "epoch"), ("epoch", "step")):
            first, second = (
                AcquisitionSampler(scores, StochasticAcquisition(), size=24, batch_size=6, redraw=redraw)
                for redraw in (before, after)
            )
            done = next(iter(first))
            second.load_state_dict(first.state_dict())
            assert sorted([*done, *(row for batch in second for row in batch)]) == list(range(24))

    def test_unknown_scores_come_last(self) -> None:
        info = InfoBatch(size=30, epochs=3)
        info.update([3, 4, 5], [1.0, 2.0, 3.0])
        sampler = AcquisitionSampler(info.scores, StochasticAcquisition(), size=30, batch_size=6)
        first = next(iter(sampler))
        assert set(first[:3]) == {3, 4, 5}
        assert len(set(first)) == 6

    @pytest.mark.parametrize("redraw", ["step", "epoch"])
    @pytest.mark.parametrize("kind", ["power", "softmax", "soft-rank"])
    def test_an_infinite_score_means_what_select_takes_it_for(self, kind: str, redraw: Any) -> None:
        scores = np.array([0.5, np.inf, np.nan, 0.2, np.inf, *([0.0] if kind == "power" else [-np.inf])])
        method = StochasticAcquisition(kind=kind)
        for seed in range(10):
            sampler = AcquisitionSampler(scores, method, size=6, batch_size=1, seed=seed, redraw=redraw)
            order = [row for batch in sampler for row in batch]
            if kind == "soft-rank":
                assert order[-1] == 2
            else:
                assert (set(order[:2]), set(order[2:4]), order[4:]) == ({1, 4}, {0, 3}, [5, 2])
        at_once = AcquisitionSampler(scores, method, size=6, batch_size=6, seed=1, redraw="epoch")
        known = np.array([0, 1, 3, 4, 5])
        picks = method.select(scores[known], 5, seed=(1, 0)).indices
        assert next(iter(at_once)) == [*known[picks].tolist(), 2]

    def test_a_score_that_cannot_be_drawn_by_is_named_by_its_candidate(self) -> None:
        scores = np.array([np.nan, 2.0, -0.25, 1.0])
        sampler = AcquisitionSampler(scores, StochasticAcquisition(), size=4, batch_size=1)
        with pytest.raises(ValueError, match=r"the score of candidate 2 is -0\.25, .*shift"):
            next(iter(sampler))
        lowered = StochasticAcquisition(shift="lowest")
        drawn = [row for batch in AcquisitionSampler(scores, lowered, size=4, batch_size=1) for row in batch]
        assert (set(drawn[:2]), drawn[2:]) == ({1, 3}, [2, 0])

    def test_scores_of_any_type(self) -> None:
        for scores in (torch.arange(6).to(torch.bfloat16).requires_grad_(), torch.arange(6), list(range(6))):
            sampler = AcquisitionSampler(scores, StochasticAcquisition(beta=float("inf")), size=6, batch_size=6)
            assert next(iter(sampler)) == [5, 4, 3, 2, 1, 0]

    def test_shapes_and_budget_are_checked(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            list(AcquisitionSampler(np.ones(3), StochasticAcquisition(), size=4, batch_size=2))
        with pytest.raises(ValueError, match="budget"):
            AcquisitionSampler(np.ones(3), StochasticAcquisition(), size=3, batch_size=2, budget=4)
        with pytest.raises(ValueError, match="redraw"):
            AcquisitionSampler(np.ones(3), StochasticAcquisition(), size=3, batch_size=2, redraw="never")


class TestImportance:
    def test_chances_against_the_formula(self) -> None:
        losses = np.array([1, 3, 0, np.nan, -2], np.float32)
        share = np.array([1, 3, 0, 1, 0])  # unknown counts as the mean of the known, negative as zero
        assert chances(losses, 0.2) == pytest.approx(0.8 * share / 5 + 0.2 / 5, rel=1e-6)
        assert chances(np.full(4, np.nan, np.float32), 0.2) == pytest.approx([0.25] * 4)
        assert chances(np.zeros(4, np.float32), 0.2) == pytest.approx([0.25] * 4)

    def test_draws_follow_the_chances_and_are_unbiased(self) -> None:
        """Chi-square of the counts (error rate 1 in 10,000), and the weighted mean within 5 standard errors."""
        from scipy.stats import chi2

        rng = np.random.default_rng(0)
        losses, x = rng.exponential(size=50).astype(np.float32), rng.normal(size=50)
        importance = Importance(size=50)
        importance.update(np.arange(50), losses)
        drawn = importance.draw(1, 40_000)
        p = chances(losses, 0.2)
        expected = 40_000 * p / p.sum()
        assert ((np.bincount(drawn, minlength=50) - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, 49)
        weighted = importance.weights(drawn) * x[drawn]
        assert abs(weighted.mean() - x.mean()) < 5 * weighted.std() / math.sqrt(40_000)
        halves = drawn[:20_000], drawn[20_000:]
        assert abs(halves[0].mean() - halves[1].mean()) < 5 * np.std(drawn) * math.sqrt(2 / 20_000)

    def test_weights_are_those_of_the_draw(self) -> None:
        importance = Importance(size=10)
        sampler = ImportanceSampler(importance, batch_size=5)
        for batch in sampler:
            before = importance.weights(batch)
            weighted = importance.update(batch, torch.full((5,), 7.0, requires_grad=True))
            assert weighted.detach().numpy() == pytest.approx(7 * before)
            assert np.array_equal(importance.weights(batch), before)

    @pytest.mark.parametrize("options", [{"size": 0}, {"size": 3, "uniform": 0}, {"size": 3, "seed": -1}])
    def test_parameters_are_checked(self, options: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must"):
            Importance(**options)
        with pytest.raises(ValueError, match="draws"):
            ImportanceSampler(Importance(size=3), batch_size=1, draws=0)


VECTORS = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 96, 8)).astype(np.float32))


def embed(positions: np.ndarray) -> tuple[Pair, Pair]:
    a, b, c, d = VECTORS[:, torch.as_tensor(positions)]
    return Pair(a, b), Pair(c, d)
