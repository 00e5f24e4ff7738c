"""JEST's sampler: super-batches and shares for any number of ranks, and ranks that fail or differ."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from curation import JEST, BatchPlan, Pair
from curation.selectors.samplers import JESTBatchSampler, PlanBatchSampler, RandomBatchSampler

SIZE, WORLD, CASES = 96, 3, 12
VECTORS = np.random.default_rng(1).normal(size=(4, 400, 8))


def embed(positions: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    a, b, c, d = VECTORS[:, positions]
    return Pair(a, b), Pair(c, d)


def make(score: Any = embed, **options: Any) -> JESTBatchSampler:
    source = PlanBatchSampler(BatchPlan.of_size(np.arange(SIZE), 24), seed=2)
    return JESTBatchSampler(source, JEST(filter_ratio=0.5, chunks=3), score, seed=7, **options)


def test_it_chooses_what_the_selector_chooses() -> None:
    supers = list(PlanBatchSampler(BatchPlan.of_size(np.arange(SIZE), 24), seed=2))
    expected = []
    for done, batch in enumerate(supers):
        pairs = embed(np.array(batch))
        jest = JEST(filter_ratio=0.5, chunks=3)
        picks = jest.select(*pairs, generator=np.random.default_rng((7, 0, done + 1))).indices
        expected.append([batch[i] for i in picks])
    assert list(make()) == expected
    assert [len(batch) for batch in expected] == [12] * 4


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="learner of 3 rows for 24"):
        next(iter(make(lambda positions: embed(positions[:3]))))
    with pytest.raises(ValueError, match="rank"):
        make(rank=1)


class TestSmallSuperBatches:
    """Every rank gets rows at every step, whatever the sizes are."""

    def test_a_rest_of_fewer_rows_than_ranks_joins_the_super_batch_before(self) -> None:
        source = RandomBatchSampler(size=92, batch_size=30)
        ranks = [JESTBatchSampler(source, JEST(filter_ratio=0.5), embed, rank=r, world_size=3) for r in range(3)]
        assert [len(sampler) for sampler in ranks] == [3, 3, 3]
        assert [[len(batch) for batch in sampler] for sampler in ranks] == [[5, 5, 5], [5, 5, 5], [5, 5, 6]]

    @pytest.mark.parametrize(("drop_last", "last"), [(False, 5), (True, 3)])
    def test_a_rest_of_which_too_few_are_chosen_joins_it_too(self, drop_last: bool, last: int) -> None:
        """Of 15 rows three are chosen, one for each rank; of the last nine two would be, and of 24 five are."""
        source = RandomBatchSampler(size=144, batch_size=15, drop_last=drop_last)
        ranks = [JESTBatchSampler(source, JEST(filter_ratio=0.8), embed, rank=r, world_size=3) for r in range(3)]
        assert [len(sampler) for sampler in ranks] == [9] * 3
        steps = zip(*(list(sampler) for sampler in ranks), strict=True)
        assert [sum(map(len, step)) for step in steps] == [3] * 8 + [last]

    def test_a_last_super_batch_that_is_large_enough_does_not_make_up_for_the_others(self) -> None:
        """Of 5 rows one is chosen, and of the last 9, which took in 4, two are."""
        sampler = JESTBatchSampler(
            RandomBatchSampler(size=29, batch_size=5), JEST(filter_ratio=0.8), pytest.fail, rank=0, world_size=2
        )
        with pytest.raises(ValueError, match="of a super-batch of 5 rows 1 are chosen for 2 ranks"):
            next(iter(sampler))

    @pytest.mark.parametrize("sharded", [False, True])
    def test_super_batches_that_are_all_too_small_are_said_before_anything_is_scored(self, sharded: bool) -> None:
        for rank in range(2):
            for source in (
                RandomBatchSampler(size=30, batch_size=5),
                PlanBatchSampler(BatchPlan.of_size(np.arange(30), 5)),
            ):
                sampler = JESTBatchSampler(
                    source, JEST(filter_ratio=0.8), pytest.fail, sharded=sharded, rank=rank, world_size=2
                )
                with pytest.raises(ValueError, match="of a super-batch of 5 rows 1 are chosen for 2 ranks"):
                    next(iter(sampler))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    filter_ratio=st.floats(0, 0.9),
    world_size=st.integers(1, 5),
    drop=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_what_is_chosen_of_a_plan_is_of_one_of_its_batches(
    sizes: list[int], filter_ratio: float, world_size: int, drop: bool, seed: int
) -> None:
    """Batches stay whole, and every rank gets rows of each; those too small for the ranks are left out on request."""
    plan = BatchPlan(
        indices=np.random.default_rng(seed).permutation(sum(sizes)), offsets=np.concatenate([[0], np.cumsum(sizes)])
    )
    jest = JEST(filter_ratio=filter_ratio, criterion="hard", joint=False)
    seen: list[frozenset[int]] = []

    def score(positions: npt.NDArray[np.int64]) -> tuple[Pair, None]:
        seen.append(frozenset(positions.tolist()))
        return embed(positions)[0], None

    ranks = [
        JESTBatchSampler(
            PlanBatchSampler(plan, seed=seed, remainder="drop" if drop else "share"),
            jest, score, rank=rank, world_size=world_size,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    large = [size for size in sizes if sum(jest.rounds(size)) >= world_size]
    if not large:
        for sampler in ranks:
            with pytest.raises(ValueError, match="ranks"):
                next(iter(sampler))
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lengths = [len(sampler) for sampler in ranks]
        batches = [list(sampler) for sampler in ranks]
    assert lengths == [len(given) for given in batches] == [len(large) if drop else len(sizes)] * world_size
    assert bool(said) == (not drop and len(large) < len(sizes))
    supers = seen[: lengths[0]]
    assert seen == supers * world_size
    kept = [batch for batch in plan if not drop or sum(jest.rounds(len(batch))) >= world_size]
    assert sorted(map(sorted, supers)) == sorted(sorted(batch.tolist()) for batch in kept)
    for whole, step in zip(supers, joined(batches), strict=True):
        assert set(step) <= whole
        assert len(set(step)) == sum(jest.rounds(len(whole)))
    assert all(batch for given in batches for batch in given)


@settings(deadline=None, max_examples=80)
@given(
    batches=st.integers(1, 4),
    rest=st.integers(0, 40),
    beyond=st.integers(-3, 15),
    filter_ratio=st.floats(0, 0.9),
    worlds=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    drop_last=st.booleans(),
    stop=st.integers(0, 8),
    seed=st.integers(0, 2**20),
)
def test_any_size_on_any_ranks_resumed_anywhere(
    batches: int,
    rest: int,
    beyond: int,
    filter_ratio: float,
    worlds: tuple[int, int],
    drop_last: bool,
    stop: int,
    seed: int,
) -> None:
    """No list is empty, ``len`` is right, no row is lost, and only what can never be shared out is refused."""
    jest = JEST(filter_ratio=filter_ratio, criterion="hard", joint=False)
    least = [next(size for size in count(1) if sum(jest.rounds(size)) >= world_size) for world_size in worlds]
    batch_size = max(1, least[0] + beyond)
    rows = batches * batch_size + rest % batch_size
    scored: set[int] = set()

    def score(positions: npt.NDArray[np.int64]) -> tuple[Pair, None]:
        scored.update(positions.tolist())
        return embed(positions)[0], None

    def ranks(world_size: int) -> list[JESTBatchSampler]:
        return [
            JESTBatchSampler(
                RandomBatchSampler(size=rows, batch_size=batch_size, seed=seed, drop_last=drop_last),
                jest, score, seed=seed, rank=rank, world_size=world_size,
            )
            for rank in range(world_size)
        ]  # fmt: skip

    def steps(samplers: list[JESTBatchSampler]) -> Iterator[list[list[int]]]:
        lengths = {len(sampler) for sampler in samplers}
        given = 0
        for step in zip(*samplers, strict=True):
            given += 1
            assert all(step)
            yield list(step)
        assert lengths == {given}

    before, after = (ranks(world_size) for world_size in worlds)
    # One super-batch may take in the rest.
    alone = batches == 1 and rows - batch_size < max(worlds[0], least[0]) and not drop_last
    if (rows if alone else batch_size) < least[0]:
        for sampler in before:
            with pytest.raises(ValueError, match="ranks"):
                next(iter(sampler))
        return
    whole = list(steps(before))
    assert drop_last or scored == set(range(rows))
    before, stop = ranks(worlds[0]), stop % len(whole)
    scored.clear()
    passes = [iter(sampler) for sampler in before]
    for _ in range(stop):
        for batches in passes:
            next(batches)
    assume(batch_size >= least[1])
    state, done = before[-1].state_dict(), set(scored)
    scored.clear()
    for sampler in after:
        sampler.load_state_dict(state)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rest = list(steps(after))
    assert not scored & done
    assert drop_last or scored | done == set(range(rows))
    if worlds[0] == worlds[1]:
        assert rest == whole[stop:]
        assert not said
    if not said:
        rows_given = [row for step in rest for batch in step for row in batch]
        assert len(set(rows_given)) == len(rows_given)


def outcome(run: Callable[[], object]) -> list[object]:
    """What it gave, or its error; and its warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            given: list[object] = ["", run()]
        except Exception as error:
            given = [f"{type(error).__name__}: {error}", type(error.__cause__).__name__]
    return [*given, [str(warning.message) for warning in said]]


def joined(ranks: Iterable[list[list[int]]]) -> list[list[int]]:
    """The batches of all ranks together."""
    return [[row for batch in step for row in batch] for step in zip(*ranks, strict=True)]


def raising(positions: npt.NDArray[np.int64]) -> Any:
    raise KeyError("shard-00017.tar")


def misshapen(positions: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    return Pair(VECTORS[0, positions], VECTORS[1, positions][1:]), embed(positions)[1]


def too_few(positions: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    return embed(positions[:3])


def of_integers(positions: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    pair = embed(positions)[0]
    return Pair(pair.a.astype(int), pair.b.astype(int)), pair


def with_a_nan(positions: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    learner, reference = embed(positions)
    learner.b[2, 1] = np.nan
    return learner, reference


FAULTS: dict[str, tuple[Any, str, str]] = {
    "raising": (raising, "rank 1: KeyError: 'shard-00017.tar'", "KeyError"),
    "misshapen": (misshapen, "rank 1: a has shape", "ValueError"),
    "too few": (too_few, "rank 1: score returned a learner of 3 rows for", "ValueError"),
    "integers": (of_integers, "rank 1: learner.a must be a torch tensor or numpy array of floats", "TypeError"),
    "a NaN": (with_a_nan, "rank 1: learner.b, row 2: not finite", "ValueError"),
}
"""What rank 1 has in place of ``embed``, what all ranks say, and what rank 1 says was the cause."""


def of_size(size: int, seed: int = 2, **options: Any) -> list[list[int]]:
    source = RandomBatchSampler(size=size, batch_size=24, seed=seed)
    return list(JESTBatchSampler(source, JEST(**options), embed, seed=7, sharded=True))


DIFFERENCES: dict[str, tuple[Callable[[int], object], str]] = {
    "size": (lambda rank: of_size(96 + 24 * (rank == 2)), "rank 2 disagrees with rank 0: "),
    "seed": (lambda rank: of_size(96, seed=rank), "'seed': 1"),
    "method": (lambda rank: of_size(96, chunks=3 + (rank == 1)), "chunks=4"),
    "plan": (
        lambda rank: list(
            JESTBatchSampler(
                PlanBatchSampler(BatchPlan.of_size(np.arange(SIZE)[:: -1 if rank == 1 else 1], 24)),
                JEST(),
                embed,
            )
        ),
        "rank 1 disagrees with rank 0: ('(epoch, position) (0, 1)', 'super-batch",
    ),
}
"""What each rank runs, and what all say."""


def tuned(rank: int) -> Callable[[npt.NDArray[np.int64]], tuple[Pair, Pair]]:
    """A model that is another one on rank 2."""
    return lambda positions: embed((positions + 50 * (rank == 2)) % 400)


def resumed(case: int, *, sharded: bool, rank: int | None = None) -> list[list[int]]:
    """The rest of a random epoch that fewer ranks began; ``rank`` None is torch.distributed's."""
    random = np.random.default_rng(case)
    batch_size, rest = int(random.integers(10, 30)), int(random.integers(1, 12))
    options: dict[str, Any] = {"rank": rank, "world_size": None if rank is None else WORLD}

    def sampler(**options: Any) -> JESTBatchSampler:
        source = RandomBatchSampler(size=batch_size + rest, batch_size=batch_size, seed=case)
        return JESTBatchSampler(source, JEST(filter_ratio=0.7, chunks=2), embed, seed=case, **options)

    began = sampler(rank=0, world_size=1)
    batches = iter(began)
    for _ in range(case % 2):
        next(batches)
    after = sampler(sharded=sharded, **options)
    after.load_state_dict(began.state_dict())
    length = len(after)
    given = list(after)
    assert len(given) == length
    assert all(given)
    return given


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=40)
    )
    seen: dict[str, object] = {}
    for sharded in (False, True):
        seen[f"alike {sharded}"] = outcome(lambda sharded=sharded: list(make(sharded=sharded)))  # type: ignore[misc]
        for name, (score, _, _) in FAULTS.items():
            mine = score if rank == 1 else embed
            run = lambda mine=mine, sharded=sharded: list(make(mine, sharded=sharded))  # noqa: E731
            seen[f"{name} {sharded}"] = outcome(run)
        for case in range(CASES):
            run = lambda case=case, sharded=sharded: resumed(case, sharded=sharded)  # noqa: E731
            seen[f"case {case} {sharded}"] = outcome(run)
    for name, (run_on, _) in DIFFERENCES.items():
        seen[name] = outcome(lambda run_on=run_on: run_on(rank))  # type: ignore[misc]
    seen["models"] = outcome(lambda: list(make(tuned(rank))))
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw, by what was run."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


class TestRanks:
    """Three processes: what one of them does wrong, all say; none waits for another."""

    @pytest.mark.parametrize("sharded", [False, True])
    def test_ranks_that_are_alike_share_one_choice(self, ranks: list[dict[str, Any]], sharded: bool) -> None:
        alone = list(make(rank=0, world_size=1))
        shares = [seen[f"alike {sharded}"] for seen in ranks]
        assert [share[0] for share in shares] == [""] * WORLD
        assert joined(share[1] for share in shares) == alone

    @pytest.mark.parametrize("sharded", [False, True])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_of_one_rank_is_raised_on_all(self, ranks: list[dict[str, Any]], fault: str, sharded: bool) -> None:
        _, message, cause = FAULTS[fault]
        errors, causes = zip(*(seen[f"{fault} {sharded}"][:2] for seen in ranks), strict=True)
        assert len(set(errors)) == 1
        assert f"ValueError: {message}" in errors[0]
        assert causes == ("NoneType", cause, "NoneType")

    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_ranks_that_differ_all_say_so(self, ranks: list[dict[str, Any]], difference: str) -> None:
        errors = {seen[difference][0] for seen in ranks}
        assert len(errors) == 1
        assert DIFFERENCES[difference][1] in errors.pop()

    def test_of_unequal_choices_all_take_rank_0s(self, ranks: list[dict[str, Any]]) -> None:
        seen = [seen["models"] for seen in ranks]
        assert joined(batches for _, batches, _ in seen) == list(make(rank=0, world_size=1))
        assert all("rank 2 chose other rows of a super-batch than rank 0" in said[0] for _, _, said in seen)

    def test_any_rest_of_an_epoch_is_shared_out_alike_however_it_is_embedded(self, ranks: list[dict[str, Any]]) -> None:
        """Ranks without a row to embed among them."""
        repeated = 0
        for case in range(CASES):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                expected = [resumed(case, sharded=False, rank=rank) for rank in range(WORLD)]
            repeated += bool(said)
            for sharded in (False, True):
                assert [seen[f"case {case} {sharded}"][1] for seen in ranks] == expected
        assert repeated > 1
