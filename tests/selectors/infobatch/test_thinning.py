"""InfoBatch over a plan: what the plan keeps apart stays apart, in every epoch and on every rank."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import BatchPlan, InfoBatch
from curation.selectors.b3 import B3
from curation.selectors.b3.batches import regroup
from curation.selectors.b3.communities import Communities
from curation.selectors.b3.conflicts import conflict_columns, count_together
from curation.selectors.infobatch.thinning import thinned
from curation.selectors.samplers import InfoBatchSampler

Rows = list[int]


class Promise(NamedTuple):
    """What a plan of N rows keeps apart: data sets int64[N], and ids of rows that share no batch, int64[N, c]."""

    datasets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]

    def broken(self, batch: Rows) -> str:
        """What a batch breaks, or nothing."""
        if len(set(self.datasets[batch].tolist())) > 1:
            return "several data sets"
        for column in self.ids[batch].T.tolist():
            known = [name for name in column if name >= 0]
            if len(set(known)) < len(known):
                return "rows of equal ids"
        return ""


def a_promise(size: int, sets: int, shared: float, rng: np.random.Generator) -> Promise:
    """Two columns, as of queries and positives; of each a share of the rows comes in groups of up to three."""
    ids = np.full((size, 2), -1, np.int64)
    for column in ids.T:
        some = rng.permutation(size)[: int(shared * size)]
        column[some] = np.arange(len(some)) // rng.integers(2, 4)
    return Promise(rng.integers(0, sets, size), ids)


def a_plan(promise: Promise, batch_size: int, epoch: int, *, says: bool = True) -> BatchPlan:
    """An epoch's plan of B3; or the same, which does not say what it keeps apart."""
    size = len(promise.datasets)
    nothing: Any = None
    found = Communities(
        clusters=np.arange(size),
        ranking=nothing,
        graph=nothing,
        apart=conflict_columns(promise.ids, size),
        datasets=promise.datasets,
        metadata={},
    )
    plan = B3(batch_size=batch_size, cluster_size=1).batches(found, epoch=epoch)
    return plan if says else BatchPlan(indices=plan.indices, offsets=plan.offsets)


def run(
    info: Callable[[], InfoBatch], plan: Callable[[int], BatchPlan], losses: Any, world_size: int, **options: Any
) -> list[list[list[Rows]]]:
    """By epoch and rank, the batches; all ranks are told all losses, as torch.distributed would do it."""
    infos = [info() for _ in range(world_size)]
    ranks = [
        InfoBatchSampler(info, plan=plan, rank=rank, world_size=world_size, **options)
        for rank, info in enumerate(infos)
    ]
    epochs = []
    for number, epoch in enumerate(losses):
        planned = plan(number).indices
        lengths = [len(sampler) for sampler in ranks]
        epochs.append([list(sampler) for sampler in ranks])
        assert [len(batches) for batches in epochs[-1]] == lengths == lengths[:1] * world_size
        trained = sorted(row for batches in epochs[-1] for batch in batches for row in batch)
        for one in infos:
            chosen = one.epoch(number)
            kept = np.intersect1d(chosen.indices, planned)
            # The last rows of batches so small that they cannot be shared out go to several ranks (samplers/split.py).
            few = {row for batches in epochs[-1] for row in batches[-1]}
            assert sorted(set(trained)) == kept.tolist(), "a kept row is lost"
            assert len(trained) == len(kept) or len(few) < world_size, "a kept row comes twice"
            assert one.weights(chosen.indices).tolist() == chosen.weights.tolist()
            one.update(chosen.indices, epoch[chosen.indices])
    return epochs


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(40, 200),
    sets=st.integers(1, 4),
    shared=st.sampled_from([0.0, 0.1, 0.4]),
    batch_sizes=st.sampled_from([(8, 8), (8, 20), (12, 5)]),
    world_size=st.integers(1, 4),
    says=st.booleans(),
    form=st.sampled_from(["coins", "exact"]),
    seed=st.integers(0, 2**30),
)
def test_no_epoch_breaks_a_promise_of_the_plan(
    size: int,
    sets: int,
    shared: float,
    batch_sizes: tuple[int, int],
    world_size: int,
    says: bool,
    form: Any,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    promise = a_promise(size, sets, shared, rng)
    planned, trained = batch_sizes
    try:
        plans = [a_plan(promise, planned, epoch, says=says) for epoch in range(3)]
    except ValueError:  # of a data set of few batches not all rows can be kept apart
        return
    epochs = run(
        lambda: InfoBatch(size=size, epochs=9, form=form, seed=seed),
        plans.__getitem__,
        rng.exponential(size=(3, size)),
        world_size,
        batch_size=trained,
    )
    for batches in (batch for epoch in epochs for rank in epoch for batch in rank):
        assert not promise.broken(batches)
        assert 1 <= len(batches) <= trained


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    batch_size=st.integers(1, 12),
    names=st.integers(1, 40),
    sets=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**30),
)
def test_batches_are_as_full_as_the_plan_permits(
    sizes: list[int], batch_size: int, names: int, sets: int, share: float, seed: int
) -> None:
    """Against plans that break their promises too, as one with a surplus of equal ids does."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    indices, kept = rng.permutation(3 * total)[:total], rng.random(3 * total) < share
    apart = np.stack([np.sort(rng.integers(0, total, total // 2)), rng.integers(0, names, total // 2)], axis=1)
    datasets = rng.integers(0, sets, len(sizes))
    plan = BatchPlan(indices=indices, offsets=offsets, apart=apart, datasets=datasets)
    ids: dict[int, set[int]] = {row: set() for row in indices.tolist()}
    for row, name in apart.tolist():
        ids[int(indices[row])].add(name)
    home = {row: number for number, batch in enumerate(plan) for row in batch.tolist()}
    found = thinned(plan, kept, batch_size)
    assert sorted(found.indices.tolist()) == sorted(row for row in indices.tolist() if kept[row])
    pruned = [int(kept[batch].sum()) for batch in plan]
    smallest = min((size // -(-size // batch_size) for size in pruned if size), default=0)
    assert all(smallest <= len(batch) <= batch_size for batch in found)
    for batch in found:
        rows = batch.tolist()
        assert len({datasets[home[row]] for row in rows}) == 1
        for one in rows:
            for other in rows:
                assert one == other or home[one] == home[other] or not ids[one] & ids[other]
    free = thinned(BatchPlan(indices=indices, offsets=offsets, apart=apart[:0], datasets=datasets), kept, batch_size)
    rows_of_sets = np.bincount(datasets, weights=pruned)
    assert len(free) == sum(math.ceil(rows / batch_size) for rows in rows_of_sets)
    silent = thinned(BatchPlan(indices=indices, offsets=offsets, datasets=datasets), kept, batch_size)
    assert len(silent) == sum(-(-size // batch_size) for size in pruned)
    assert [row for row in indices.tolist() if kept[row]] == silent.indices.tolist()
    assert len(free) <= len(found) <= len(silent)


def test_an_id_of_every_batch_leaves_all_of_them() -> None:
    """One row of each of 10 batches has the same id, so ten batches it stays; and all of the others would fit in 4."""
    apart = np.stack([np.arange(0, 50, 5), np.zeros(10, np.int64)], axis=1)
    plan = BatchPlan(indices=np.arange(50), offsets=np.arange(0, 51, 5), apart=apart)
    found = thinned(plan, np.ones(50, bool), 20)
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in plan]
    assert len(thinned(plan, np.arange(50) % 5 > 0, 20)) == 2


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 10_000))
def test_of_rows_that_may_meet_no_more_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = conflict_columns(np.where(rng.random(120) < 0.6, rng.integers(0, 8, 120), 0), 120)
    assert columns is not None
    plan = regroup(np.arange(120) // 2, batch_size=8, cluster_size=2, seed=seed, apart=columns, surplus="allow").plan
    kept = rng.random(120) < 0.5

    def met(plan: BatchPlan) -> int:
        batches = np.full(120, -1)
        batches[plan.indices] = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
        return count_together(np.where(kept, batches, -1), columns)

    assert met(thinned(plan, kept, 8)) <= met(plan)


def test_how_full_batches_are() -> None:
    """4,000 rows of 12 data sets, 400 pairs of equal ids, batches of 64: the numbers that the docs give."""
    rng = np.random.default_rng(0)
    ids = np.full((4000, 1), -1, np.int64)
    ids[rng.permutation(4000)[:800], 0] = np.arange(800) // 2
    promise = Promise(rng.integers(0, 12, 4000), ids)
    means = []
    for says in (True, False):
        epochs = run(
            lambda: InfoBatch(size=4000, epochs=9),
            lambda epoch, says=says: a_plan(promise, 64, epoch, says=says),  # type: ignore[misc]
            np.random.default_rng(1).exponential(size=(3, 4000)),
            1,
            batch_size=64,
        )
        assert not any(promise.broken(batch) for epoch in epochs for batch in epoch[0])
        means.append([sum(map(len, epoch[0])) / len(epoch[0]) / 64 for epoch in epochs])
    np.testing.assert_allclose(means, [[0.89, 0.89, 0.88], [0.89, 0.62, 0.61]], atol=0.02)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_plan_of_which_nothing_is_kept_is_an_error(world_size: int) -> None:
    info = InfoBatch(size=40, epochs=4, form="exact", prune_ratio=0.9)
    info.begin(0)
    info.update(np.arange(40), np.where(np.arange(40) < 20, 0.0, 9.0))
    info.begin(1)
    dropped = np.flatnonzero(~info.mask(1))
    for rank in range(world_size):
        sampler = InfoBatchSampler(
            info, batch_size=4, plan=BatchPlan.of_size(dropped, 4), rank=rank, world_size=world_size
        )
        sampler.set_epoch(1)
        with pytest.raises(ValueError, match=f"epoch 1 has fewer rows than ranks, 0 for {world_size}"):
            next(iter(sampler))


def test_a_plan_that_is_saved_says_what_may_meet(tmp_path: Any) -> None:
    promise = a_promise(200, 2, 0.3, np.random.default_rng(0))
    plan = a_plan(promise, 8, 0)
    plan.save(tmp_path / "batches.arrow")
    kept = np.random.default_rng(1).random(200) < 0.6
    expected, found = (thinned(one, kept, 8) for one in (plan, BatchPlan.load(tmp_path / "batches.arrow")))
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
    assert len(found) < len(thinned(a_plan(promise, 8, 0, says=False), kept, 8))
    assert all(first < stop for first, stop in pairwise(found.offsets.tolist()))
