"""The task of ``benchmarks.jest_training``: tldr pairs, a hashed EmbeddingBag, and one arm's training step."""

import itertools
import math
import re
import time
import zlib
from typing import Any

import numpy as np
import torch

from curation import JEST, Pair
from curation.selectors.jest.reference import EmbeddingCache

BUCKETS, WIDTH, SUPER, TAKEN = 65_536, 128, 1_280, 256


class Texts:
    """Hashed words, word pairs and character trigrams of each text, as one ragged array."""

    def __init__(self, texts: list[str]) -> None:
        hashed = [self._features(text.lower()) for text in texts]
        self._ids = np.concatenate(hashed)
        self._starts = np.cumsum([0, *map(len, hashed)])

    @staticmethod
    def _features(text: str) -> np.ndarray:
        words = re.findall(r"\w+|[^\w\s]", text)
        grams = [*words, *map(" ".join, itertools.pairwise(words))]
        grams += [f"#{word[i : i + 3]}" for word in (f"^{w}$" for w in words) for i in range(len(word) - 2)]
        return np.array([zlib.crc32(gram.encode()) % BUCKETS for gram in grams] or [0], np.int64)

    def __getitem__(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = self._starts[rows + 1] - self._starts[rows]
        offsets = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(self._starts[rows] - offsets, lengths)
        return torch.from_numpy(self._ids[places]), torch.from_numpy(offsets)


class Model(torch.nn.Module):
    """Two towers over one table; SigLIP's scale and bias are learnt."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = torch.nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", sparse=True)
        torch.nn.init.normal_(self.table.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = torch.nn.Parameter(torch.tensor(-10.0))

    def embed(self, texts: Texts, rows: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.normalize(self.table(*texts[rows]), dim=1)

    @torch.no_grad()
    def pair(self, queries: Texts, positives: Texts, rows: np.ndarray, others: np.ndarray) -> Pair:
        a, b = self.embed(queries, rows), self.embed(positives, others)
        return Pair(a, b, float(self.log_scale.exp()), float(self.bias))


def sigmoid_loss(a: torch.Tensor, b: torch.Tensor, model: Model) -> torch.Tensor:
    logits = model.log_scale.exp() * a @ b.T + model.bias
    signs = 2 * torch.eye(len(a)) - 1
    return torch.nn.functional.softplus(-signs * logits).sum() / len(a)


def mrr(model: Model, queries: Texts, positives: Texts, rows: np.ndarray) -> float:
    pair = model.pair(queries, positives, rows, rows)
    similar = pair.a @ pair.b.T
    ranks = (similar > similar.diagonal().unsqueeze(1)).sum(1) + 1
    return float((100 / ranks).mean())


class Training:
    """One arm's training, a step at a time, with its own random state and its own clock.

    Args:
        partner: int64[N]; ``partner[row]`` is the row whose positive stands beside ``row``'s query: noise where
            they differ.
        jest: how to choose from a super-batch; None takes its first rows.
    """

    def __init__(
        self, queries: Texts, positives: Texts, pool: np.ndarray, partner: np.ndarray, *,
        jest: JEST | None, reference: EmbeddingCache | None, steps: int, rate: float, seed: int,
    ) -> None:  # fmt: skip
        self.queries, self.positives, self.pool, self.partner = queries, positives, pool, partner
        self.jest, self.reference = jest, reference
        self.model = Model(seed)
        sparse = torch.optim.SparseAdam(self.model.table.parameters(), lr=rate)
        dense = torch.optim.Adam([self.model.log_scale, self.model.bias], lr=rate)
        self.optimizers = (sparse, dense)
        self.decays = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps) for o in self.optimizers]
        self.random, self.generator = np.random.default_rng((seed, 1)), torch.Generator().manual_seed(seed)
        self.noise = 0

    def step(self) -> tuple[float, float]:
        """Seconds of the whole step, and of those the seconds for scoring and choosing."""
        start, choosing = time.perf_counter(), 0.0
        at = self.random.choice(len(self.pool), SUPER, replace=False)
        if self.jest is None:
            at = at[:TAKEN]
        else:
            rows = self.pool[at]
            learner, known = None, None
            if self.jest.criterion != "easy":
                learner = self.model.pair(self.queries, self.positives, rows, self.partner[rows])
            if self.jest.criterion != "hard" and self.reference is not None:
                known = self.reference.pair(at)
            at = at[self.jest.select(learner, known, generator=self.generator).indices]
            choosing = time.perf_counter() - start
        rows = self.pool[at]
        a, b = self.model.embed(self.queries, rows), self.model.embed(self.positives, self.partner[rows])
        loss = sigmoid_loss(a, b, self.model)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, decay in zip(self.optimizers, self.decays, strict=True):
            optimizer.step()
            decay.step()
        seconds = time.perf_counter() - start
        self.noise += int((self.partner[rows] != rows).sum())
        return seconds, choosing

    def mrr(self, rows: np.ndarray) -> float:
        return mrr(self.model, self.queries, self.positives, rows)

    def run(self, steps: int, every: int, test: np.ndarray) -> dict[str, Any]:
        """``curve`` (step, seconds so far, MRR on ``test``) and totals of ``steps`` steps."""
        curve, seconds, choosing = [], 0.0, 0.0
        for step in range(1, steps + 1):
            whole, part = self.step()
            seconds, choosing = seconds + whole, choosing + part
            if step % every == 0:
                curve.append((step, seconds, self.mrr(test)))
        return {"curve": curve, "choosing": choosing, "noise": self.noise / steps / TAKEN}
