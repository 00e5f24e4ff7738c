"""A small bi-encoder on docstrings and code of the standard library: B3's batches against random ones.

    python examples/bi_encoder_b3.py

Both arms begin with the same weights and take as many steps on batches of the same size; every fifth pair is held
out. Rate and temperature are the best for random batches, and ``--cluster-size``, ``--ranks`` and ``--dimensions`` the
best for B3, on a part of the other pairs: a teacher of 512 dimensions sees words, not topics, and does harm. Takes
about a minute on two cores, and no download.
"""

import argparse
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from curation import B3, BatchPlan
from curation.pipelines.steps.teachers import Tfidf
from curation.recipe import StdlibSource
from curation.selectors.b3 import text_ids
from curation.selectors.samplers import PlanBatchSampler
from curation.sources import open_source

BUCKETS, WIDTH, TEMPERATURE = 65_536, 128, 0.15


class Encoder(nn.Module):
    """Hashed words and pairs of words, their mean taken, one table for both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", sparse=True)
        nn.init.normal_(self.table.weight, std=WIDTH**-0.5)

    def forward(self, bags: list[Tensor]) -> Tensor:
        starts = torch.tensor([0, *np.cumsum([len(bag) for bag in bags[:-1]])])
        return normalize(self.table(torch.cat(bags), starts), dim=1)


def hashed(text: str) -> Tensor:
    words = re.findall(r"[^\W_]+", text.lower())[:60] or ["-"]
    grams = words + [f"{left} {right}" for left, right in pairwise(words)]
    return torch.tensor([crc32(gram.encode()) % BUCKETS for gram in grams])


def read_pairs(limit: int | None) -> tuple[list[str], list[str]]:
    source = open_source(StdlibSource(format="stdlib", content="pair"))
    seen: dict[str, str] = {}
    for block in source.blocks(16_384):
        table, _ = source.read(block, ["query", "positive"])
        for query, positive in zip(table["query"].to_pylist(), table["positive"].to_pylist(), strict=True):
            seen.setdefault(query, positive)
    pairs = list(seen.items())[:limit]
    return [query for query, _ in pairs], [positive for _, positive in pairs]


def train(
    plans: Callable[[int], BatchPlan], left: list[Tensor], right: list[Tensor], steps: int, seed: int, rate: float
) -> Encoder:
    torch.manual_seed(seed)
    model = Encoder()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=rate)
    sampler, step = PlanBatchSampler(plans, seed=seed), 0
    while step < steps:
        for batch in sampler:
            logits = model([left[row] for row in batch]) @ model([right[row] for row in batch]).T / TEMPERATURE
            target = torch.arange(len(batch))
            loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    return model


@torch.no_grad()
def recall_at_1(model: Encoder, left: list[Tensor], right: list[Tensor]) -> float:
    best = (model(left) @ model(right).T).argmax(1)
    return float((best == torch.arange(len(left))).float().mean())


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--cluster-size", type=int, default=8)
parser.add_argument("--ranks", type=int, nargs=2, default=(30, 130))
parser.add_argument("--dimensions", type=int, default=64, help="of the teacher")
parser.add_argument("--lr", type=float, default=0.03)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--limit", type=int, help="pairs to take; default: all")
args = parser.parse_args()
torch.set_num_threads(2)

queries, positives = read_pairs(args.limit)
held_out = np.arange(len(queries)) % 5 == 4
rows: Any = np.flatnonzero(~held_out)
texts = [side[row] for side in (queries, positives) for row in rows]
teacher = Tfidf.fit(texts, args.dimensions, seed=0)
b3 = B3(batch_size=args.batch_size, cluster_size=args.cluster_size, ranks=tuple(args.ranks), last="drop")
inside = [[side[row] for row in rows] for side in (queries, positives)]
found = b3.mine(teacher(inside[0]), teacher(inside[1]), seed=0, duplicates=text_ids(inside[1]))
bags = [[hashed(text) for text in side] for side in (queries, positives)]
left, right = ([side[row] for row in rows] for side in bags)
test = [[side[row] for row in np.flatnonzero(held_out)] for side in bags]
print(f"{len(rows)} pairs to train on, {len(test[0])} held out, {args.steps} steps of {args.batch_size}")


def mined(seed: int) -> Callable[[int], BatchPlan]:
    return lambda epoch: b3.batches(found, seed=seed, epoch=epoch)


def at_random(seed: int) -> Callable[[int], BatchPlan]:
    def plan(epoch: int) -> BatchPlan:
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        return BatchPlan.of_size(order, args.batch_size, drop_last=True)

    return plan


scores = {}
for name, arm in (("random", at_random), ("B3", mined)):
    models = [train(arm(seed), left, right, args.steps, seed, args.lr) for seed in range(args.seeds)]
    scores[name] = np.array([recall_at_1(model, *test) for model in models])
    print(f"{name:>6}: recall@1 {scores[name].mean():.3f}, mean of {args.seeds} seeds, sd {scores[name].std():.3f}")
gain = scores["B3"] - scores["random"]
print(f"B3 minus random, seed by seed: {gain.mean():+.3f} ({gain.min():+.3f} to {gain.max():+.3f})")
