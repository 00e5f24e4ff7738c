"""The Triton kernels of random, knn and topk in Triton's interpreter, in a process of their own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

INTERPRETED = """
import json
import torch
from curation.gpu.knn import nearest
from curation.gpu.knn.matrix import Matrix
from curation.gpu.knn.kernels import scores
from curation.gpu.topk.kernels import best_by_bar
from curation.gpu.topk import tensor
from curation.gpu.topk.gumbel import Keying, noise_seeds

failed = []
numbers = torch.Generator().manual_seed(0)

nearest.TILE = 64
for dtype, l2 in ((torch.float16, False), (torch.bfloat16, True), (torch.float32, False)):
    left, right = (torch.randn(n, 19, generator=numbers).to(dtype) for n in (4, 263))
    for squares in ((right.float() ** 2).sum(1) if l2 else None,):
        ids, floor, spilt = nearest.shortlist_filtered(left, right, squares, 17)
        products = torch.cat([left @ part.T for part in right.split(64)], 1).float()
        if squares is not None:
            products = 2 * products - squares
        found = products.gather(1, ids).sort(1, descending=True).values
        if spilt.any() or not torch.equal(found, products.topk(17, 1).values) or not torch.equal(floor, found[:, -1]):
            failed.append(f"shortlist {dtype} {squares is None}")
# Places run out: the query is marked, and what stands in its places is still the database's.
rising = torch.arange(400.0)[:, None].half()
ids, _, spilt = nearest.shortlist_filtered(torch.ones(2, 1).half(), rising, None, 3)
if not spilt.all() or int(ids.max()) >= 400:
    failed.append("a list in rising order")
left, right = torch.randn(4, 13, generator=numbers), torch.randn(50, 13, generator=numbers)
ids = torch.randint(-1, 50, (4, 70), generator=numbers)
for l2 in (False, True):
    expected = Matrix(right, "database").score_pairs(left.numpy(), ids.numpy(), l2=l2)
    if not torch.equal(scores(left, right, ids, l2=l2), torch.from_numpy(expected)):
        failed.append(f"scores {l2}")

def draw(values, keying, start=2**40 + 3, k=20):
    fast = best_by_bar(values, k, start, keying, sample=1024, programs=3)
    if fast is None:
        return None
    slow = tensor.best(values, k, start, keying)
    return torch.equal(fast[0], slow[0]) and torch.equal(fast[1], slow[1])

seeds = noise_seeds(3)
noise = torch.randn(5003, generator=numbers)
mixed = noise.double().exp()
mixed[::3], mixed[1::500] = 0, 1e-60
mixed[5:8] = torch.inf
for name, values, keying in (
    ("softmax", noise, Keying(scale=3.0, seeds=seeds)),
    ("power, with zeros, infinities and what float32 cannot hold", mixed, Keying(scale=0.7, log=True, seeds=seeds)),
    ("uniform", noise.bfloat16(), Keying(scale=0.0, seeds=seeds)),
    ("no noise", torch.arange(5003)[torch.randperm(5003, generator=numbers)], Keying()),
):
    if draw(values, keying) is not True:
        failed.append(name)
bad = noise.clone()
bad[4000] = torch.nan
for name, values, keying, k in (
    ("NaN", bad, Keying(seeds=seeds), 20),
    ("negative", noise, Keying(log=True, seeds=seeds), 20),
    ("all equal", torch.ones(5003), Keying(), 20),
    ("fewer above zero than k", (noise > 3).float(), Keying(log=True, seeds=seeds), 20),
    ("more than a sample shows", noise, Keying(seeds=seeds), 2000),
):
    if draw(values, keying, k=k) is not None:
        failed.append(name + " must be left to the other way")
print(json.dumps(failed))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
