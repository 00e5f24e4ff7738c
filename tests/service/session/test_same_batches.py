"""One selector, two ways in: a session hands every rank the batches that the local sampler gives it."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation import JEST, BatchPlan, InfoBatch, Pair, StochasticAcquisition
from curation.selectors.samplers import (
    AcquisitionSampler,
    InfoBatchSampler,
    JESTBatchSampler,
    PlanBatchSampler,
    RandomBatchSampler,
)
from curation.service.client import Client
from curation.service.client.sampler import RemoteBatchSampler
from curation.service.errors import Refusal
from curation.service.session.choice import RankPart
from curation.service.session.methods.registry import make_method
from curation.service.session.session import Session
from curation.service.session.spec import SessionSpec

EPOCHS, SEED = 2, 7
LOSSES = np.random.default_rng(0).exponential(size=(EPOCHS, 500)).astype(np.float32)
SIDES = torch.randn(4, 500, 5, generator=torch.Generator().manual_seed(0))
JEST_OPTIONS: dict[str, Any] = {"filter_ratio": 0.5, "chunks": 3}

Batch = tuple[list[int], list[float]]
"""Positions and weights."""
Epochs = list[list[list[Batch]]]
"""By epoch, rank and step."""


class Case(NamedTuple):
    """An epoch of ``size`` rows on ``world_size`` ranks."""

    size: int
    batch_size: int
    world_size: int
    drop_last: bool

    def spec(self, method: str, **parameters: Any) -> SessionSpec:
        return SessionSpec(method=method, epochs=EPOCHS, seed=SEED, parameters=parameters, **self._asdict())


def plan_of(case: Case) -> BatchPlan:
    """Batches of 1 to ``batch_size`` rows."""
    rng = np.random.default_rng(case.size)
    sizes = rng.integers(1, case.batch_size + 1, size=case.size)
    offsets = np.unique(np.minimum(np.concatenate([[0], np.cumsum(sizes)]), case.size))
    return BatchPlan(indices=rng.permutation(case.size), offsets=offsets)


def embeddings(rows: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    sides = SIDES[:, torch.from_numpy(rows)]
    return Pair(sides[0], sides[1], 10.0, -10.0), Pair(sides[2], sides[3], 9.0, -8.0)


class Local(NamedTuple):
    """A rank's sampler, what is saved beside it, the weights of a batch, and what it does with an epoch's losses."""

    sampler: Any
    beside: Any = None
    weights: Callable[[list[int]], Any] = np.ones_like
    record: Callable[[list[int], Any], Any] = lambda rows, losses: None


def local_random(case: Case, **rank: int) -> Local:
    options = {"size": case.size, "batch_size": case.batch_size, "drop_last": case.drop_last}
    return Local(RandomBatchSampler(**options, seed=SEED, **rank))


def local_plan(case: Case, **rank: int) -> Local:
    # By default as the service does; what drop_last leaves out there, remainder="drop" does here.
    options: dict[str, Any] = {"remainder": "drop"} if case.drop_last else {}
    return Local(PlanBatchSampler(plan_of(case), seed=SEED, **options, **rank))


def local_infobatch(case: Case, **rank: int) -> Local:
    info = InfoBatch(size=case.size, epochs=EPOCHS, delta=1.0, seed=SEED)
    sampler = InfoBatchSampler(info, batch_size=case.batch_size, drop_last=case.drop_last, **rank)
    return Local(sampler, info, info.weights, info.update)


def drawn(case: Case) -> int:
    return min(case.size, max(case.world_size, 2 * case.size // 3))


def local_acquisition(case: Case, **rank: int) -> Local:
    scores = np.ones(case.size, np.float32)
    sampler = AcquisitionSampler(
        scores,
        StochasticAcquisition(beta=2.0),
        size=case.size,
        batch_size=case.batch_size,
        budget=drawn(case),
        redraw="epoch",
        drop_last=case.drop_last,
        seed=SEED,
        **rank,
    )
    return Local(sampler, scores, record=scores.__setitem__)


def local_jest(case: Case, **rank: int) -> Local:
    whole = case.batch_size * case.world_size
    source = RandomBatchSampler(size=case.size, batch_size=whole, seed=SEED, drop_last=case.drop_last)
    return Local(JESTBatchSampler(source, JEST(**JEST_OPTIONS), embeddings, seed=SEED, **rank))


def run_epoch(
    make: Callable[..., Local], case: Case, ranks: list[Local], epoch: int, taken: int
) -> tuple[list[Local], list[list[Batch]]]:
    """An epoch on all ranks, stopped after ``taken`` steps; the ranks that went on, and the batches of each.

    Each is told the losses of all as the epoch ends, as torch.distributed would do it.
    """
    length = len(ranks[0].sampler)
    taken = min(taken, length)
    batches: list[list[Batch]] = []
    for rank, local in enumerate(ranks):
        batches.append([(batch, list(local.weights(batch))) for batch in islice(local.sampler, taken)])
        other = ranks[rank] = make(case, rank=rank, world_size=case.world_size)
        if isinstance(local.beside, InfoBatch):
            other.beside.load_state_dict(local.beside.state_dict())
        elif local.beside is not None:
            other.beside[:] = local.beside
        other.sampler.load_state_dict(local.sampler.state_dict())
        other.sampler.set_epoch(epoch + (taken == length))
        if taken < length:
            assert len(other.sampler) == length - taken
            batches[-1] += [(batch, list(other.weights(batch))) for batch in other.sampler]
    for local in ranks:
        for rows, _ in (batch for rank in batches for batch in rank):
            local.record(rows, LOSSES[epoch, rows])
    return ranks, batches


def session_of(spec: SessionSpec, case: Case, **tables: Any) -> Iterator[list[list[Batch]]]:
    """The batches of each epoch, of a session that is told the losses of all."""
    method = make_method(spec, case.size, tables)
    session, state = Session(spec, method), method.start()
    for epoch in range(EPOCHS):
        if method.stateful:
            session.opened(*session.opening(epoch, state, np.empty((0, 2), np.int64)))
        steps = range(*session.span_of(epoch))
        batches = [[session.batch(rank, step) for step in steps] for rank in range(case.world_size)]
        for rank in range(case.world_size):
            assert [len(batch.indices) for batch in batches[rank]] == [session.length(rank, step) for step in steps]
        reports = [(batch.indices, LOSSES[epoch, batch.indices]) for rank in batches for batch in rank]
        opened = session.epoch(epoch)
        assert opened is not None
        state = method.fold(state, opened, reports)
        yield [[(batch.indices.tolist(), batch.weights.tolist()) for batch in rank] for rank in batches]


def service_random(case: Case) -> Epochs:
    return list(session_of(case.spec("random"), case))


def service_plan(case: Case) -> Epochs:
    return list(session_of(case.spec("plan"), case, plan=plan_of(case).to_arrow()))


def service_infobatch(case: Case) -> Epochs:
    return list(session_of(case.spec("infobatch", delta=1.0), case))


def service_acquisition(case: Case) -> Epochs:
    return list(session_of(case.spec("acquisition", beta=2.0, k=drawn(case)), case))


def service_jest(case: Case) -> Epochs:
    spec = case.spec("jest", **JEST_OPTIONS)
    method: Any = make_method(spec, case.size, {})
    epochs: Epochs = []
    for number in range(EPOCHS):
        epoch = method.epoch(number, {})
        epochs.append([[] for _ in range(case.world_size)])
        for step in range(epoch.steps):
            parts = [part_of(epoch.batch(rank, step)[0]) for rank in range(case.world_size)]
            choice = method.choose(parts, (SEED, number, epoch.bounds(step)[1]))
            chosen = epoch.super_batch(step)[choice.positions]
            for rank, batches in enumerate(epochs[-1]):
                rows = chosen[slice(*epoch.share(rank, step))].tolist()
                batches.append((rows, [1.0] * len(rows)))
    return epochs


def part_of(rows: npt.NDArray[np.int64]) -> RankPart:
    learner, reference = embeddings(rows)
    sides = {"learner_a": learner.a, "learner_b": learner.b, "reference_a": reference.a, "reference_b": reference.b}
    factors = {"learner_scale": 10.0, "learner_bias": -10.0, "reference_scale": 9.0, "reference_bias": -8.0}
    return RankPart({name: np.asarray(side) for name, side in sides.items()}, None, factors)


METHODS: dict[str, tuple[Callable[..., Local], Callable[[Case], Epochs]]] = {
    "random": (local_random, service_random),
    "plan": (local_plan, service_plan),
    "infobatch": (local_infobatch, service_infobatch),
    "acquisition": (local_acquisition, service_acquisition),
    "jest": (local_jest, service_jest),
}
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.filterwarnings("ignore:. rows are left of epoch:UserWarning")  # of a plan of batches of one row or two
@given(
    size=st.integers(1, 90),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 7),
    drop_last=st.booleans(),
    taken=st.integers(0, 9),
)
# A rest of fewer rows than ranks, and of more; a whole epoch of less than a step; and of fewer rows than ranks.
@example(size=85, batch_size=4, world_size=7, drop_last=False, taken=1)
@example(size=79, batch_size=4, world_size=3, drop_last=True, taken=2)
@example(size=20, batch_size=4, world_size=7, drop_last=True, taken=1)
@example(size=3, batch_size=4, world_size=7, drop_last=False, taken=0)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_session_gives_the_batches_of_the_local_sampler(
    method: str, size: int, batch_size: int, world_size: int, drop_last: bool, taken: int
) -> None:
    """Also where every local epoch is stopped after some steps, and gone on with by samplers made anew.

    Of an epoch of fewer rows than ranks the service hands out what there is, with empty batches; a local sampler
    raises, on every rank.
    """
    local, service = METHODS[method]
    case = Case(size, batch_size, world_size, drop_last)
    if method == "jest" and is_refused(case):
        for rank in range(world_size):
            with pytest.raises(ValueError, match="are chosen for|fewer rows than ranks"):
                next(iter(local(case, rank=rank, world_size=world_size).sampler))
        return
    expected = service(case)
    scarce = [number for number, epoch in enumerate(expected) if not all(rows for rank in epoch for rows, _ in rank)]
    ranks = [local(case, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, epoch in enumerate(expected[: scarce[0] if scarce else EPOCHS]):
        ranks, found = run_epoch(local, case, ranks, number, taken)
        assert found == epoch
    if scarce:
        assert sum(len(rows) for rank in expected[scarce[0]] for rows, _ in rank) < world_size
        assert all(len(rank) == 1 for rank in expected[scarce[0]])
        for one in ranks:
            with pytest.raises(ValueError, match=f"epoch {scarce[0]} has fewer rows than ranks"):
                next(iter(one.sampler))


def is_refused(case: Case) -> bool:
    """Whether the service refuses a session of jest, because a rank's batches would be empty."""
    try:
        make_method(case.spec("jest", **JEST_OPTIONS), case.size, {})
    except Refusal:
        return True
    return False


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live().url)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_remote_sampler_gives_them_too(url: str, drop_last: bool) -> None:
    case = Case(170, 4, 3, drop_last)
    with Client(url) as client:
        session = client.create_session(
            "plan",
            plan=plan_of(case),
            size=case.size,
            batch_size=case.batch_size,
            world_size=case.world_size,
            epochs=EPOCHS,
            seed=SEED,
            drop_last=drop_last,
        ).id
        ranks = [RemoteBatchSampler(client, session, rank=rank) for rank in range(case.world_size)]
        epochs = [[[(batch, [1.0] * len(batch)) for batch in rank] for rank in ranks] for _ in range(EPOCHS)]
    local = [local_plan(case, rank=rank, world_size=case.world_size) for rank in range(case.world_size)]
    for number, epoch in enumerate(epochs):
        local, expected = run_epoch(local_plan, case, local, number, 3)
        assert epoch == expected
