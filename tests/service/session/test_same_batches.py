"""One selector, two ways in: a session hands every rank the batches that the local sampler gives it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

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
    """A rank's sampler, the weights of a batch, and what it does with an epoch's losses."""

    sampler: Any
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
    return Local(sampler, info.weights, info.update)


def local_acquisition(case: Case, **rank: int) -> Local:
    scores = np.ones(case.size, np.float32)
    sampler = AcquisitionSampler(
        scores,
        StochasticAcquisition(beta=2.0),
        size=case.size,
        batch_size=case.batch_size,
        budget=max(case.world_size, 2 * case.size // 3),
        redraw="epoch",
        drop_last=case.drop_last,
        seed=SEED,
        **rank,
    )
    return Local(sampler, record=scores.__setitem__)


def local_jest(case: Case, **rank: int) -> Local:
    whole = case.batch_size * case.world_size
    source = RandomBatchSampler(size=case.size, batch_size=whole, seed=SEED, drop_last=case.drop_last)
    return Local(JESTBatchSampler(source, JEST(**JEST_OPTIONS), embeddings, seed=SEED, **rank))


def run_local(make: Callable[..., Local], case: Case) -> Epochs:
    """All ranks, each told the losses of all of them as an epoch ends, as torch.distributed would do it."""
    ranks = [make(case, rank=rank, world_size=case.world_size) for rank in range(case.world_size)]
    epochs: Epochs = []
    for epoch in range(EPOCHS):
        epochs.append([])
        for local in ranks:
            length = len(local.sampler)
            epochs[-1].append([(batch, list(local.weights(batch))) for batch in local.sampler])
            assert len(epochs[-1][-1]) == length
        trained = [rows for batches in epochs[-1] for rows, _ in batches]
        for local in ranks:
            for rows in trained:
                local.record(rows, LOSSES[epoch, rows])
    return epochs


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
    return list(session_of(case.spec("acquisition", beta=2.0, k=max(case.world_size, 2 * case.size // 3)), case))


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
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("drop_last", [False, True])
# 168 rows divide by 4 rows and each number of ranks but 4; the other sizes leave fewer rows than ranks, or more, and 20
# rows are less than a step of 7 ranks.
@pytest.mark.parametrize("size", [168, 169, 170, 179, 20])
def test_a_session_gives_the_batches_of_the_local_sampler(
    method: str, size: int, world_size: int, drop_last: bool
) -> None:
    local, service = METHODS[method]
    case = Case(size, 4, world_size, drop_last)
    if method == "jest" and is_refused(case):
        with pytest.raises(ValueError, match="are chosen for"):
            run_local(local, case)
        return
    expected = run_local(local, case)
    assert service(case) == expected
    assert all(rows for epoch in expected for rank in epoch for rows, _ in rank)


def is_refused(case: Case) -> bool:
    """Whether the service refuses a session of jest, because a rank's batches would be empty."""
    try:
        make_method(case.spec("jest", **JEST_OPTIONS), case.size, {})
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("method", ["random", "plan", "infobatch", "acquisition"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_of_fewer_rows_than_ranks(method: str, drop_last: bool) -> None:
    """The service hands out what there is, with empty batches; a local sampler raises, on every rank."""
    local, service = METHODS[method]
    case = Case(3, 4, 7, drop_last)
    if method == "acquisition":
        spec = case.spec("acquisition", beta=2.0)
        epochs = list(session_of(spec, case))
    else:
        epochs = service(case)
        for rank in range(7):
            with pytest.raises(ValueError, match="fewer rows than ranks, 3 for 7"):
                next(iter(local(case, rank=rank, world_size=7).sampler))
    assert [sorted(row for rank in epoch for rows, _ in rank for row in rows) for epoch in epochs[:1]] == [[0, 1, 2]]
    assert all(len(rank) == 1 for epoch in epochs for rank in epoch)


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
    assert epochs == run_local(local_plan, case)
