"""Does JEST's choice train better? ``python -m benchmarks.jest_training``: tldr pairs, part of them shuffled.

A hashed EmbeddingBag (65,536 × 128, one table for both sides) learns description -> command line with the
sigmoid loss. Each arm takes 256 of a super-batch of 1,280 a step; ``uniform`` takes 256 at random. The
reference model is trained on 20 % of the data, all clean, which the arms never see. Every arm of a seed
shares data, noise and initial weights. Steps and seconds are those until an arm's MRR on held-out pairs reaches
the best of that seed's uniform run; seconds hold scoring and selection, not evaluation.

Results go to a JSON file as they come: the same command goes on where it was stopped.
"""

import argparse
import itertools
import json
import math
import re
import statistics
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.common import data_dir
from curation import JEST, Pair
from curation.selectors.reference import EmbeddingCache

BUCKETS, WIDTH, SUPER, TAKEN, TEST = 65_536, 128, 1_280, 256, 2_000
ARMS: dict[str, JEST | None] = {
    "uniform": None,
    "independent": JEST(joint=False),
    "joint": JEST(),
    "hard": JEST(criterion="hard"),
    "easy": JEST(criterion="easy"),
}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}


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


def train(
    queries: Texts, positives: Texts, pool: np.ndarray, partner: np.ndarray, test: np.ndarray, *,
    jest: JEST | None, reference: EmbeddingCache | None, steps: int, every: int, rate: float, seed: int,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    """``partner[row]`` is the row whose positive stands beside ``row``'s query; noise where they differ."""
    model = Model(seed)
    sparse = torch.optim.SparseAdam(model.table.parameters(), lr=rate)
    dense = torch.optim.Adam([model.log_scale, model.bias], lr=rate)
    optimizers = (sparse, dense)
    decays = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps) for o in optimizers]
    random = np.random.default_rng((seed, 1))
    generator = torch.Generator().manual_seed(seed)
    curve, seconds, choosing, noise = [], 0.0, 0.0, 0
    for step in range(1, steps + 1):
        start = time.perf_counter()
        at = random.choice(len(pool), SUPER, replace=False)
        if jest is None:
            at = at[:TAKEN]
        else:
            rows = pool[at]
            learner = model.pair(queries, positives, rows, partner[rows])
            known = None if reference is None else reference.pair(at)
            at = at[jest.select(learner, known, generator=generator).indices]
            choosing += time.perf_counter() - start
        rows = pool[at]
        loss = sigmoid_loss(model.embed(queries, rows), model.embed(positives, partner[rows]), model)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, decay in zip(optimizers, decays, strict=True):
            optimizer.step()
            decay.step()
        seconds += time.perf_counter() - start
        noise += int((partner[rows] != rows).sum())
        if step % every == 0:
            curve.append((step, seconds, mrr(model, queries, positives, test)))
    return model, {"curve": curve, "choosing": choosing, "noise": noise / steps / TAKEN}


def run_seed(
    queries: Texts, positives: Texts, count: int, noise: float, seed: int, args: Any, out: dict[str, Any]
) -> Iterator[str]:
    """Fill ``out`` with the arms that ``args`` asks for and that it lacks; yields each when it is done."""
    random = np.random.default_rng((seed, 0))
    order = random.permutation(count)
    test, rest = order[:TEST], order[TEST:]
    clean, pool = rest[: len(rest) // 5], rest[len(rest) // 5 :]
    own = np.arange(count)
    partner = own.copy()
    shuffled = random.choice(pool, int(noise * len(pool)), replace=False)
    partner[shuffled] = np.roll(shuffled, 1)
    common = {"steps": args.steps, "rate": args.rate, "seed": seed}
    cache = args.results.with_suffix(f".{noise}.{seed}.arrow")
    cache.parent.mkdir(parents=True, exist_ok=True)
    if "reference" not in out or not cache.exists():
        model, out["reference"] = train(
            queries, positives, clean, own, test, jest=None, reference=None, every=args.steps, **common
        )
        EmbeddingCache.write(cache, [model.pair(queries, positives, pool, partner[pool])])
        yield "reference"
    for arm in args.arms:
        if arm not in out:
            _, out[arm] = train(
                queries, positives, pool, partner, test,
                jest=ARMS[arm], reference=EmbeddingCache(cache), every=args.every, **common,
            )  # fmt: skip
            yield arm


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    half = T_95.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def table(results: dict[str, Any]) -> str:
    lines = ["mean ± 95 % interval; 'reached' counts the seeds that reached their uniform run's best MRR", ""]
    names = ("best MRR", "vs uniform", "steps", "seconds", "reached", "noise taken", "choosing")
    widths = (13, 14, 15, 13, 9, 13, 10)
    head = f"{'noise':>5}  {'arm':<12}" + "".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
    for noise in sorted({key.split("/")[0] for key in results}, key=float):
        runs = [run for key, run in results.items() if key.split("/")[0] == noise]
        lines.append(head)
        for arm in ARMS:
            have = [run for run in runs if arm in run and "uniform" in run]
            if not have:
                continue
            best = [max(point[2] for point in run[arm]["curve"]) for run in have]
            bar = [max(point[2] for point in run["uniform"]["curve"]) for run in have]
            first = [
                next((point for point in run[arm]["curve"] if point[2] >= target), None)
                for run, target in zip(have, bar, strict=True)
            ]
            hits = [point for point in first if point]
            share = [run[arm]["choosing"] / run[arm]["curve"][-1][1] for run in have]
            lines.append(
                f"{float(noise):>5.0%}  {arm:<12}{interval(best):>13}"
                f"{interval([x - y for x, y in zip(best, bar, strict=True)]):>14}"
                f"{interval([p[0] for p in hits]):>15}{interval([p[1] for p in hits]):>13}"
                f"{f'{len(hits)}/{len(have)}':>9}{statistics.mean(run[arm]['noise'] for run in have):>13.0%}"
                f"{statistics.mean(share):>10.0%}"
            )
        reference = [run["reference"]["curve"][-1][2] for run in runs if "reference" in run]
        lines += [f"       reference model's MRR: {interval(reference)}", ""]
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    noises = sorted({key.split("/")[0] for key in results}, key=float)
    figure, axes = plt.subplots(2, len(noises), figsize=(4.2 * len(noises), 6.5), sharey="col", squeeze=False)
    for column, noise in enumerate(noises):
        runs = [run for key, run in results.items() if key.split("/")[0] == noise]
        for arm in ARMS:
            curves = np.array([run[arm]["curve"] for run in runs if arm in run])
            if not len(curves):
                continue
            for row in (0, 1):
                x, y = curves[:, :, row].mean(0), curves[:, :, 2]
                (line,) = axes[row, column].plot(x, y.mean(0), label=arm)
                if len(curves) > 1:
                    half = T_95.get(len(curves), 1.96) * y.std(0, ddof=1) / len(curves) ** 0.5
                    axes[row, column].fill_between(
                        x, y.mean(0) - half, y.mean(0) + half, alpha=0.2, color=line.get_color()
                    )
        axes[0, column].set(title=f"{float(noise):.0%} of pairs shuffled", xlabel="step", ylabel="MRR × 100")
        axes[1, column].set(xlabel="seconds, choosing included", ylabel="MRR × 100")
    axes[0, 0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.3, 0.5], help="shares of shuffled pairs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--minutes", type=float, default=15, help="start no new run after this long")
    parser.add_argument("--results", type=Path, default=Path("out/jest_training.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/jest.png"))
    args = parser.parse_args()
    begin = time.monotonic()
    data = pq.read_table(data_dir() / "pairs" / "tldr.parquet", columns=["query", "positive"])
    queries, positives = (Texts(data[name].to_pylist()) for name in ("query", "positive"))
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for seed, noise in itertools.product(range(args.seeds), args.noise):
        out = results.setdefault(f"{noise}/{seed}", {})
        done = run_seed(queries, positives, len(data), noise, seed, args, out)
        while time.monotonic() - begin < 60 * args.minutes and (arm := next(done, None)):
            args.results.write_text(json.dumps(results))
            print(f"noise {noise:.0%}, seed {seed}, {arm}: {out[arm]['curve'][-1][2]:.1f}", flush=True)
    print(table(results))
    draw(results, args.figure)


if __name__ == "__main__":
    main()
