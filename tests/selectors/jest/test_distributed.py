"""JEST over ranks of torch.distributed: all of them make the choice that one process makes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curation import JEST, Pair

ROOT = Path(__file__).resolve().parents[3]
LOSSES = ("sigmoid", "softmax")


def pair(size: int, width: int, seed: int) -> Pair:
    random = np.random.default_rng(seed)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, size, width)))
    return Pair(a, b, 4.0, -1.0)


SHARD = """
import sys
from collections.abc import Callable
import numpy as np, torch, torch.distributed as dist
from curation import JEST, Pair
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
data = np.load(store + ".npz")
bounds = [0, 7, 40, 90]
mine = slice(bounds[rank], bounds[rank + 1])
for loss in ("sigmoid", "softmax"):
    learner = Pair(torch.from_numpy(data["la"][mine]), torch.from_numpy(data["lb"][mine]), 4.0, -1.0)
    reference = Pair(torch.from_numpy(data["ra"][mine]), torch.from_numpy(data["rb"][mine]), 4.0, -1.0)
    print(JEST(loss=loss, chunks=4).select_distributed(learner, reference, seed=(3, 1)).indices.tolist())
for bad_seed, poison in ((True, False), (False, True)):
    if poison and rank == 1:
        learner.a[2, 0] = torch.nan
    try:
        JEST().select_distributed(learner, reference, seed=rank if bad_seed else 0)
        print("no error")
    except ValueError as error:
        print(error)
dist.destroy_process_group()
"""


def test_shards_make_the_choice_that_one_process_makes(tmp_path: Path) -> None:
    learner, reference = pair(90, 8, 0), pair(90, 8, 1)
    store = tmp_path / "store"
    np.savez(f"{store}.npz", la=learner.a, lb=learner.b, ra=reference.a, rb=reference.b)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD, str(rank), "3", str(store)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    answers = [process.communicate(timeout=240) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), answers
    outputs = [out.splitlines() for out, _ in answers]
    assert outputs[0] == outputs[1] == outputs[2]
    for line, loss in zip(outputs[0], LOSSES, strict=False):
        alone = JEST(loss=loss, chunks=4).select(  # type: ignore[arg-type]
            learner, reference, generator=np.random.default_rng((3, 1))
        )
        assert line == str(alone.indices.tolist())
    assert "rank 1 disagrees with rank 0" in outputs[0][2]
    assert "rank 1: learner.a, row 2: not finite" in outputs[0][3]


def test_shards_need_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        JEST().select_distributed(pair(4, 2, 0), pair(4, 2, 1), seed=0)
