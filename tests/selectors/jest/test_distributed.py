"""JEST over ranks of torch.distributed: all of them make the choice that one process makes, or all raise."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from curation import JEST, Pair

WORLD, CASES = 3, 24


def pair(size: int, width: int, seed: int, dtype: Any = np.float64) -> Pair:
    random = np.random.default_rng(seed)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, size, width)))
    return Pair(a.astype(dtype), b.astype(dtype), 4.0, -1.0)


def part(whole: Pair | None, start: int, stop: int) -> Pair | None:
    if whole is None or start == stop:
        return None
    return Pair(whole.a[start:stop], whole.b[start:stop], whole.scale, whole.bias)


def case(number: int) -> tuple[JEST, tuple[Pair | None, Pair | None], list[int]]:
    """A random method, its super-batch, and where each rank's rows start."""
    random = np.random.default_rng(number)
    loss = random.choice(["sigmoid", "softmax"])
    criterion = random.choice(["learnability", "hard", "easy"])
    jest = JEST(
        loss=loss,
        criterion=criterion,
        filter_ratio=float(random.uniform(0, 0.95)),
        chunks=int(random.integers(1, 4)),
        joint=bool(random.random() < 0.8),
        own_positive=bool(loss == "softmax" and random.random() < 0.5),
    )
    size = int(random.integers(1, 6) if number % 2 else random.integers(6, 60))
    dtype = random.choice([np.float32, np.float64])
    learner = None if criterion == "easy" else pair(size, int(random.integers(1, 9)), number, dtype)
    reference = None if criterion == "hard" else pair(size, int(random.integers(1, 9)), number + 1, dtype)
    cuts = np.sort(random.integers(0, size + 1, WORLD - 1)).tolist()
    return jest, (learner, reference), [0, *cuts, size]


def of_case(rank: int, number: int) -> list[int]:
    jest, (learner, reference), starts = case(number)
    mine = starts[rank], starts[rank + 1]
    chosen = jest.select_distributed(part(learner, *mine), part(reference, *mine), seed=(number, 1))
    assert chosen.size == starts[-1]
    return chosen.indices.tolist()


GOOD = pair(6, 4, 0), pair(6, 3, 1)


def with_nan() -> Pair:
    bad = pair(6, 4, 0)
    bad.a[2, 0] = np.nan
    return bad


FAULTS: dict[str, tuple[tuple[Pair | None, Pair | None], str, str]] = {
    "a NaN": ((with_nan(), GOOD[1]), "rank 1: learner.a, row 2: not finite", "ValueError"),
    "lengths": ((GOOD[0], pair(5, 3, 1)), "rank 1: learner has 6 rows, but reference has 5", "ValueError"),
    "dtypes of sides": (
        (Pair(GOOD[0].a, GOOD[0].b.astype(np.float32)), GOOD[1]),
        "rank 1: learner.a is torch.float64 on cpu, but b is torch.float32",
        "ValueError",
    ),
    "integers": (
        (Pair(np.ones((6, 4), int), np.ones((6, 4), int)), GOOD[1]),
        "rank 1: learner.a must be a torch tensor or numpy array of floats",
        "TypeError",
    ),
    "scale": (
        (Pair(GOOD[0].a, GOOD[0].b, torch.ones(2)), GOOD[1]),  # type: ignore[arg-type]
        "rank 1: learner.scale must be one number, not a tensor of shape [2]",
        "ValueError",
    ),
    "one model": ((None, GOOD[1]), "rank 1: criterion 'learnability' needs the learner's embeddings", "ValueError"),
    "width": ((pair(6, 5, 0), GOOD[1]), "rank 1 disagrees with rank 0", "NoneType"),
    "dtype": ((pair(6, 4, 0, np.float32), GOOD[1]), "rank 1 disagrees with rank 0", "NoneType"),
    "another scale": ((Pair(GOOD[0].a, GOOD[0].b, 5.0), GOOD[1]), "scale=5.0", "NoneType"),
}
"""What rank 1 gives in place of ``GOOD``, what all ranks say, and what rank 1 says was the cause."""


def outcome(run: Callable[[], object]) -> list[object]:
    try:
        return ["", run()]
    except Exception as error:
        return [f"{type(error).__name__}: {error}", type(error.__cause__).__name__]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=40)
    )
    group = dist.new_group([0, 2])
    seen: dict[str, object] = {}
    for number in range(CASES):
        seen[f"case {number}"] = outcome(lambda number=number: of_case(rank, number))  # type: ignore[misc]
    for name, (bad, _, _) in FAULTS.items():
        pairs = bad if rank == 1 else GOOD
        run = lambda pairs=pairs: JEST().select_distributed(*pairs, seed=0).indices.tolist()  # noqa: E731
        seen[name] = outcome(run)
    seen["seeds"] = outcome(lambda: JEST().select_distributed(*GOOD, seed=rank))
    seen["methods"] = outcome(lambda: JEST(chunks=1 + rank).select_distributed(*GOOD, seed=0))
    seen["nothing"] = outcome(lambda: JEST().select_distributed(None, None, seed=0))
    if rank != 1:
        run = lambda: JEST().select_distributed(*GOOD, seed=0, group=group).indices.tolist()  # noqa: E731
        seen["group"] = outcome(run)
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw, by what was run."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_shards_make_the_choice_that_one_process_makes(ranks: list[dict[str, Any]]) -> None:
    """Of any size, shared out in any way: fewer rows than ranks and ranks without rows among them."""
    without = 0
    for number in range(CASES):
        jest, pairs, starts = case(number)
        alone = jest.select(*pairs, generator=np.random.default_rng((number, 1))).indices.tolist()
        assert [seen[f"case {number}"] for seen in ranks] == [["", alone]] * WORLD, number
        without += 0 in np.diff(starts)
    assert without > CASES // 4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_rank_is_raised_on_all(ranks: list[dict[str, Any]], fault: str) -> None:
    _, message, cause = FAULTS[fault]
    errors, causes = zip(*(seen[fault] for seen in ranks), strict=True)
    assert len(set(errors)) == 1
    assert errors[0].startswith("ValueError: ")
    assert message in errors[0]
    assert causes == ("NoneType", cause, "NoneType")


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ("seeds", "rank 1 disagrees with rank 0"),
        ("methods", "chunks=2"),
        ("nothing", "no rank has rows to choose from"),
    ],
)
def test_ranks_that_differ_all_say_so(ranks: list[dict[str, Any]], difference: str, message: str) -> None:
    errors = {seen[difference][0] for seen in ranks}
    assert len(errors) == 1
    assert message in errors.pop()


def test_a_group_of_ranks_chooses_by_itself(ranks: list[dict[str, Any]]) -> None:
    both = [Pair(*(np.concatenate([side, side]) for side in (good.a, good.b)), good.scale, good.bias) for good in GOOD]
    alone = JEST().select(*both, generator=np.random.default_rng(0)).indices.tolist()
    assert ranks[0]["group"] == ranks[2]["group"] == ["", alone]


def test_shards_need_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        JEST().select_distributed(*GOOD, seed=0)
