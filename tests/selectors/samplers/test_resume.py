"""One suite that every sampler joins: wherever it is interrupted, it goes on with the very next batch."""

import multiprocessing as mp
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from curation import JEST, BatchPlan, InfoBatch, Pair, StochasticAcquisition
from curation.selectors.importance import Importance
from curation.selectors.samplers import (
    AcquisitionSampler,
    ImportanceSampler,
    Indexed,
    InfoBatchSampler,
    JESTBatchSampler,
    PlanBatchSampler,
    RandomBatchSampler,
)

SIZE, BATCH = 96, 4
LOSSES = np.random.default_rng(0).exponential(size=SIZE).astype(np.float32)
VECTORS = torch.from_numpy(np.random.default_rng(1).normal(size=(4, SIZE, 8)).astype(np.float32))


def embed(positions: np.ndarray) -> tuple[Pair, Pair]:
    a, b, c, d = VECTORS[:, torch.as_tensor(positions)]
    return Pair(a, b), Pair(c, d)


def plan_of(epoch: int) -> BatchPlan:
    """It says what it keeps apart, groups of three rows, so that InfoBatch fills its batches up."""
    apart = np.stack([np.arange(0, SIZE, 2 * BATCH), np.arange(SIZE // (2 * BATCH)) // 3], axis=1)
    return replace(BatchPlan.of_size(np.random.default_rng((5, epoch)).permutation(SIZE), BATCH), apart=apart)


def plain(state: Any) -> Any:
    """Tensors as arrays, whose pickles are equal where they are."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(plain(value) for value in state)
    return state.numpy().copy() if isinstance(state, torch.Tensor) else state


class Harness:
    """A sampler with the state beside it, made anew in each 'process', and a step of 'training'."""

    def __init__(self, kind: str, rank: int = 0, world: int = 1) -> None:
        ranks: dict[str, Any] = {"rank": rank, "world_size": world}
        self.beside: Any = None
        if kind in ("infobatch", "infobatch-plan"):
            self.beside = InfoBatch(size=SIZE, epochs=20, seed=3)
            plans = plan_of if kind == "infobatch-plan" else None
            self.sampler: Any = InfoBatchSampler(self.beside, batch_size=BATCH, plan=plans, **ranks)
        elif kind == "importance":
            self.beside = Importance(size=SIZE, seed=3)
            self.sampler = ImportanceSampler(self.beside, batch_size=BATCH, **ranks)
        elif kind == "random":
            self.sampler = RandomBatchSampler(size=SIZE, batch_size=BATCH, seed=3, **ranks)
        elif kind == "plan":
            # Twenty batches, one of them of a single row: three ranks share the rows of the last two.
            plan = BatchPlan.of_size(plan_of(0).indices, 5)
            self.sampler = PlanBatchSampler(plan, seed=3, **ranks)
        elif kind == "plan-drop":
            self.sampler = PlanBatchSampler(plan_of(0), seed=3, remainder="drop", **ranks)
        elif kind == "plan-rows":
            self.sampler = PlanBatchSampler(plan_of, seed=3, split="rows", **ranks)
        elif kind == "acquisition":
            self.sampler = AcquisitionSampler(
                LOSSES, StochasticAcquisition(), size=SIZE, batch_size=BATCH, seed=3, **ranks
            )
        elif kind == "acquisition-epoch":
            self.beside = InfoBatch(size=SIZE, epochs=20, seed=3)
            self.sampler = AcquisitionSampler(
                partial(getattr, self.beside, "scores"),
                StochasticAcquisition(),
                size=SIZE,
                batch_size=BATCH,
                redraw="epoch",
                seed=3,
                **ranks,
            )
        elif kind == "jest":
            source = PlanBatchSampler(BatchPlan.of_size(np.arange(SIZE), 4 * BATCH), seed=3)
            jest = JEST(loss="sigmoid", filter_ratio=0.5, chunks=2)
            self.sampler = JESTBatchSampler(source, jest, embed, **ranks)
        elif kind == "jest-random":
            source = RandomBatchSampler(size=SIZE, batch_size=4 * BATCH, seed=3)
            self.sampler = JESTBatchSampler(source, JEST(filter_ratio=0.5, chunks=2), embed, **ranks)
        elif kind == "jest-infobatch":
            self.beside = InfoBatch(size=SIZE, epochs=20, seed=3)
            source = InfoBatchSampler(self.beside, batch_size=4 * BATCH, drop_last=True)
            self.sampler = JESTBatchSampler(source, JEST(filter_ratio=0.5, chunks=2), embed, **ranks)

    def train(self, batch: list[int], epoch: int | None = None) -> None:
        if self.beside is not None:
            self.beside.update(batch, LOSSES[batch] * (1 + (self.sampler.epoch if epoch is None else epoch)))

    def save(self, **options: Any) -> bytes:
        beside = None if self.beside is None else self.beside.state_dict()
        return pickle.dumps(plain((self.sampler.state_dict(**options), beside)))

    def load(self, saved: bytes) -> "Harness":
        sampler, beside = pickle.loads(saved)
        if beside is not None:
            self.beside.load_state_dict(beside)
        before = pickle.dumps(sampler)
        self.sampler.load_state_dict(sampler)
        assert pickle.dumps(sampler) == before, "load_state_dict changed the caller's dict"
        return self

    def epochs(self, epochs: range) -> list[list[list[int]]]:
        out: list[list[list[int]]] = []
        for epoch in epochs:
            self.sampler.set_epoch(epoch)
            length = len(self.sampler)
            out.append([])
            for batch in self.sampler:
                self.train(batch)
                out[-1].append(batch)
            assert len(out[-1]) == length, "len() is not what was yielded"
        return out


KINDS = [
    *("infobatch", "infobatch-plan", "importance", "random", "plan", "plan-drop", "plan-rows"),
    *("acquisition", "acquisition-epoch", "jest", "jest-random", "jest-infobatch"),
]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("stop", ["start", "one", "middle", "last", "end"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_resumes_to_the_very_next_batch(kind: str, stop: str, epoch: int) -> None:
    whole = Harness(kind).epochs(range(epoch + 2))
    total = len(whole[epoch])
    taken = {"start": 0, "one": 1, "middle": total // 2, "last": total - 1, "end": total}[stop]
    first = Harness(kind)
    first.epochs(range(epoch))
    first.sampler.set_epoch(epoch)
    batches = iter(first.sampler)
    for _ in range(taken):
        first.train(next(batches))
    second = Harness(kind).load(first.save())
    assert second.sampler.epoch == epoch + (stop == "end")
    rest = second.epochs(range(epoch, epoch + 2))
    assert rest == [whole[epoch][taken:], whole[epoch + 1]]


@every_kind
def test_an_epoch_run_to_its_end_is_followed_by_the_next(kind: str) -> None:
    whole = Harness(kind).epochs(range(3))
    first = Harness(kind)
    first.epochs(range(1))
    second = Harness(kind).load(first.save())
    assert second.sampler.epoch == 1
    assert second.epochs(range(second.sampler.epoch, 3)) == whole[1:]
    without_set_epoch = Harness(kind)
    for expected in whole:
        assert len(without_set_epoch.sampler) == len(expected)
        got = []
        for batch in without_set_epoch.sampler:
            without_set_epoch.train(batch)
            got.append(batch)
        assert got == expected


@every_kind
def test_a_trainer_that_takes_len_batches_and_no_more(kind: str) -> None:
    """Lightning and the Hugging Face Trainer never ask for the batch after the last."""
    whole = Harness(kind).epochs(range(3))
    harness = Harness(kind)
    for expected in whole:
        batches, got = iter(harness.sampler), []
        for _ in range(len(harness.sampler)):
            got.append(next(batches))
            harness.train(got[-1])
        assert got == expected
    again = Harness(kind).load(harness.save())
    assert again.sampler.epoch == 3
    if harness.beside is None:
        harness.sampler.set_epoch(2)
        assert list(harness.sampler) == whole[2], "an epoch that was named again does not run again"


@every_kind
def test_iter_is_harmless(kind: str) -> None:
    whole = Harness(kind).epochs(range(2))
    harness = Harness(kind)
    before = harness.save()
    for _ in range(3):
        iter(harness.sampler)
        len(harness.sampler)
    assert harness.save() == before
    next(iter(harness.sampler))
    assert harness.epochs(range(2)) == whole


@pytest.mark.filterwarnings("ignore:batches of the plan have rows that do not divide")
@every_kind
def test_ranks_share_an_epoch(kind: str) -> None:
    """All ranks have as many batches; together they have what one alone has, nothing twice."""
    alone = sorted(i for batch in Harness(kind).epochs(range(1))[0] for i in batch)
    for world in (2, 3, 4):
        ranks = [Harness(kind, rank, world).epochs(range(1))[0] for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        together = sorted(i for batches in ranks for batch in batches for i in batch)
        assert together == alone


@pytest.mark.filterwarnings("ignore:batches of the plan have rows that do not divide")
@every_kind
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (1, 4), (4, 1)])
def test_resumes_on_another_number_of_ranks(kind: str, before: int, after: int) -> None:
    taken = 2
    first = [Harness(kind, rank, before) for rank in range(before)]
    done = []
    for harness in first:
        batches = iter(harness.sampler)
        done += [next(batches) for _ in range(taken)]
    saved = first[0].save()
    assert {harness.save() for harness in first} == {saved}, "ranks saved different states"
    then = [Harness(kind, rank, after).load(saved) for rank in range(after)]
    rest = [harness.epochs(range(1))[0] for harness in then]
    assert len({len(batches) for batches in rest}) == 1
    together = [i for batch in done for i in batch] + [i for part in rest for batch in part for i in batch]
    alone = [i for batch in Harness(kind).epochs(range(1))[0] for i in batch]
    if kind == "plan-drop":
        # What does not divide by the new ranks is left out, as remainder="drop" says.
        left_out = (len(alone) // BATCH - taken * before) % after
        assert len(together) == len(set(together)) == len(alone) - left_out * BATCH
    else:
        assert sorted(together) == sorted(alone)


def resume_elsewhere(kind: str, saved: bytes) -> list[list[list[int]]]:
    return Harness(kind).load(saved).epochs(range(2))


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        yield pool


@every_kind
def test_resumes_in_another_process(kind: str, elsewhere: ProcessPoolExecutor) -> None:
    whole = Harness(kind).epochs(range(2))
    harness = Harness(kind)
    batches = iter(harness.sampler)
    for _ in range(3):
        harness.train(next(batches))
    rest = elsewhere.submit(resume_elsewhere, kind, harness.save()).result(120)
    assert rest == [whole[0][3:], whole[1]]


@every_kind
def test_pickles_in_the_middle(kind: str) -> None:
    whole = Harness(kind).epochs(range(1))[0]
    harness = Harness(kind)
    batches = iter(harness.sampler)
    for _ in range(3):
        harness.train(next(batches))
    copy = pickle.loads(pickle.dumps(harness))
    copy.sampler.load_state_dict(harness.sampler.state_dict())
    assert copy.epochs(range(1))[0] == whole[3:]


@every_kind
def test_a_state_of_something_else_is_refused(kind: str) -> None:
    harness = Harness(kind)
    state = harness.sampler.state_dict()
    for broken in ({**state, "surplus": 1}, {**state, "version": 2}, {**state, "seed": 4}):
        with pytest.raises(ValueError, match=r"unknown|version|seed=4"):
            harness.sampler.load_state_dict(broken)


@every_kind
def test_states_of_earlier_releases_fit(kind: str) -> None:
    """Their keys stay: whoever changes them decides what becomes of checkpoints that lie on disks."""
    position = {"version", "epoch", "position", "over", "seed"}
    infobatch, plan = {*position, "size", "planned"}, {*position, "shuffle"}
    # Positions over a plan counted rows, and count batches: InfoBatchSampler reads the earlier ones itself.
    in_plan = {*infobatch, "batch_size"}
    jest, acquisition = {"version", "seed", "source"}, {*position, "size", "budget", "drawn"}
    keys = {
        **{"infobatch": infobatch, "infobatch-plan": in_plan, "random": {*position, "size"}},
        **{"plan": plan, "plan-drop": plan, "plan-rows": plan, "importance": {*position, "size", "draws"}},
        **{"jest": jest, "jest-random": jest, "jest-infobatch": jest},
        **{"acquisition": acquisition, "acquisition-epoch": acquisition},
    }
    assert set(Harness(kind).sampler.state_dict()) == keys[kind]


@every_kind
def test_state_is_small(kind: str) -> None:
    assert len(pickle.dumps(Harness(kind).sampler.state_dict())) < 1000


class Echo(Indexed):
    """Items are positions, and the items' own positions are left out, to compare batches."""

    def __getitem__(self, index: int) -> int:
        return index


def as_lists(batch: torch.Tensor) -> list[int]:
    return batch.tolist()


Loader = Callable[[Harness], Any]

LOADERS: dict[str, dict[str, Any]] = {
    "no workers": {"num_workers": 0},
    "four forked": {"num_workers": 4, "multiprocessing_context": "fork"},
    "two forked, persistent": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
}


# Processes cost seconds, and what they could break is shared: two kinds stand for all where there are any.
MANY = ["infobatch", "jest"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for options in LOADERS.values() for kind in (MANY if options["num_workers"] else KINDS)],
)
def test_resumes_in_a_loader_by_the_batches_consumed(kind: str, options: dict[str, Any]) -> None:
    """The loader asks ahead, so the trainer says how many batches it has trained on."""
    whole = Harness(kind)
    loader = DataLoader(Echo(range(SIZE)), batch_sampler=whole.sampler, **options)
    epochs = []
    for epoch in range(2):
        whole.sampler.set_epoch(epoch)
        epochs.append([as_lists(batch) for batch in loader])
    first = Harness(kind)
    loader = DataLoader(Echo(range(SIZE)), batch_sampler=first.sampler, **options)
    for consumed, batch in enumerate(loader, 1):
        assert as_lists(batch) == epochs[0][consumed - 1]
        if consumed == 2:
            saved = first.save(consumed=consumed)
            break
    second = Harness(kind).load(saved)
    loader = DataLoader(Echo(range(SIZE)), batch_sampler=second.sampler, **options)
    assert [as_lists(batch) for batch in loader] == epochs[0][2:]
    second.sampler.set_epoch(1)
    assert [as_lists(batch) for batch in loader] == epochs[1]


def test_workers_may_be_spawned() -> None:
    first = Harness("infobatch")
    expected = [as_lists(b) for b in DataLoader(Echo(range(SIZE)), batch_sampler=Harness("infobatch").sampler)]
    loader = DataLoader(Echo(range(SIZE)), batch_sampler=first.sampler, num_workers=1, multiprocessing_context="spawn")
    assert [as_lists(batch) for batch in loader] == expected


@pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")  # torchdata 0.11 asks torch for it
@pytest.mark.parametrize(
    ("kind", "workers", "taken"),
    [
        *((kind, workers, 2) for kind in KINDS for workers in (0, 2)),
        *((kind, 0, None) for kind in KINDS),
        *((kind, 2, None) for kind in MANY),
    ],
)
def test_resumes_in_a_stateful_loader(kind: str, workers: int, taken: int | None) -> None:
    """torchdata's loader saves and restores the sampler by itself, although its workers fetch ahead; the state beside
    it is the trainer's. The second epoch is stopped, which is another one for what has learned in the first."""

    def train(harness: Harness, loader: Any, epoch: int, steps: int | None = None) -> list[list[int]]:
        batches = []
        harness.sampler.set_epoch(epoch)
        for batch in islice(loader, steps):
            batches.append(as_lists(batch))
            # The sampler may have handed out the whole epoch already.
            harness.train(batches[-1], epoch)
        return batches

    def loader_of(harness: Harness) -> Any:
        return StatefulDataLoader(Echo(range(SIZE)), batch_sampler=harness.sampler, num_workers=workers)

    epochs = Harness(kind).epochs(range(3))
    first = Harness(kind)
    loader = loader_of(first)
    assert train(first, loader, 0) == epochs[0]
    assert train(first, loader, 1, taken) == epochs[1][:taken]
    saved, beside = loader.state_dict(), first.beside and first.beside.state_dict()
    second = Harness(kind)
    if beside is not None:
        second.beside.load_state_dict(beside)
    loader = loader_of(second)
    loader.load_state_dict(pickle.loads(pickle.dumps(saved)))
    if taken is not None:
        assert train(second, loader, 1) == epochs[1][taken:]
    assert train(second, loader, 2) == epochs[2]
