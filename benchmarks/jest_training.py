"""Does JEST's choice train better? ``python -m benchmarks.jest_training``: tldr pairs, part of them shuffled.

A hashed EmbeddingBag (65,536 × 128, one table for both sides) learns description -> command line with the
sigmoid loss. Each arm takes 256 of a super-batch of 1,280 a step; ``uniform`` takes 256 at random. The
reference model is trained on 20 % of the data, all clean, which the arms never see. Every arm of a seed
shares data, noise and initial weights.

Steps are those until an arm's MRR on held-out pairs reaches the best of that seed's uniform run, and the best of
its independent run, interpolated between evaluations. Seconds are these steps times the median step of a
timing in which all arms train side by side, a step each in turn, so that a busy machine slows all of them
alike; scoring and selection count, evaluation does not.

Results go to a JSON file as they come: the same command goes on where it was stopped, and with a complete file it
only takes the times anew (a minute).
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import stats

from benchmarks.common import data_dir
from benchmarks.tasks.jest import Texts, Training
from curation import JEST
from curation.selectors.jest.reference import EmbeddingCache

TEST = 2_000
ARMS: dict[str, JEST | None] = {
    "uniform": None,
    "independent": JEST(joint=False),
    "joint": JEST(),
    "joint, 4 rounds": JEST(chunks=4),
    "hard": JEST(criterion="hard"),
    "easy": JEST(criterion="easy"),
}


class Seed:
    """The split and the noise of one seed, and its reference model's embeddings."""

    def __init__(self, queries: Texts, positives: Texts, count: int, noise: float, seed: int, args: Any) -> None:
        random = np.random.default_rng((seed, 0))
        order = random.permutation(count)
        rest = order[TEST:]
        self.test, self.clean, self.pool = order[:TEST], rest[: len(rest) // 5], rest[len(rest) // 5 :]
        self.own, self.partner = np.arange(count), np.arange(count)
        shuffled = random.choice(self.pool, int(noise * len(self.pool)), replace=False)
        self.partner[shuffled] = np.roll(shuffled, 1)
        self.texts, self.seed, self.args = (queries, positives), seed, args
        self.cache: Path = args.results.with_suffix(f".{noise}.{seed}.arrow")

    def train_reference(self) -> dict[str, Any]:
        training = self._training(self.clean, self.own, None, None)
        found = training.run(self.args.steps, self.args.steps, self.test)
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        EmbeddingCache.write(self.cache, [training.model.pair(*self.texts, self.pool, self.partner[self.pool])])
        return found

    def training(self, arm: str) -> Training:
        return self._training(self.pool, self.partner, ARMS[arm], EmbeddingCache(self.cache))

    def _training(
        self, pool: np.ndarray, partner: np.ndarray, jest: JEST | None, reference: EmbeddingCache | None
    ) -> Training:
        common = {"steps": self.args.steps, "rate": self.args.rate, "seed": self.seed}
        return Training(*self.texts, pool, partner, jest=jest, reference=reference, **common)


def run_seed(one: Seed, out: dict[str, Any]) -> Iterator[str]:
    """Fill ``out`` with the arms asked for that it lacks; yields each when it is done."""
    if "reference" not in out or not one.cache.exists():
        out["reference"] = one.train_reference()
        yield "reference"
    for arm in one.args.arms:
        if arm not in out:
            out[arm] = one.training(arm).run(one.args.steps, one.args.every, one.test)
            yield arm


def time_arms(one: Seed, steps: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, of which choosing) of each step, the arms in turn; 10 steps warm up."""
    trainings = {arm: one.training(arm) for arm in one.args.arms}
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in trainings}
    for step in range(-10, steps):
        for arm, training in trainings.items():
            taken = training.step()
            if step >= 0:
                found[arm].append(taken)
    return found


def steps_to(curve: list[tuple[float, float, float]], target: float) -> float | None:
    """The step at which MRR reaches ``target``, or None."""
    for (before, _, low), (after, _, high) in itertools.pairwise([(0, 0, 0), *curve]):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


def interval(values: list[float], form: str = ".1f") -> str:
    """Mean ± half of the 95 % interval (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "–"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):{form}} ± {half:{form.replace('+', '')}}"


def medians(timing: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Median seconds of a step, and of its choosing."""
    return {
        arm: (statistics.median(s for s, _ in taken), statistics.median(c for _, c in taken))
        for arm, taken in timing.items()
    }


def best(run: dict[str, Any]) -> float:
    return max(point[2] for point in run["curve"])


def table(results: dict[str, Any], timing: dict[str, list[tuple[float, float]]]) -> str:
    step = medians(timing)
    lines = [
        "mean ± 95 % interval over seeds",
        "",
        "a step, all arms in turn: median ms (quartiles), of which choosing",
    ]
    for arm, taken in timing.items():
        low, _, high = statistics.quantiles((s for s, _ in taken), n=4)
        ms = (1e3 * s for s in (step[arm][0], low, high, step[arm][1]))
        lines.append("  {:<16}{:7.1f} ({:.1f}–{:.1f}){:9.1f}".format(arm, *ms))
    names = ("best MRR", "vs uniform", "noise taken", "reached", "steps", "seconds", "seconds vs uniform, %")
    widths = (13, 14, 13, 9, 14, 13, 23)
    for noise in sorted({key.split("/")[0] for key in results}, key=float):
        runs = [run for key, run in results.items() if key.split("/")[0] == noise and "uniform" in run]
        head = "".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
        lines += ["", f"{float(noise):.0%} of pairs shuffled; until uniform's best MRR is reached:", f"{'':<16}{head}"]
        for arm in ARMS:
            have = [run for run in runs if arm in run]
            if not have:
                continue
            found = [(steps_to(run[arm]["curve"], best(run["uniform"])), run) for run in have]
            hits = [(steps, run) for steps, run in found if steps is not None]
            cells = [
                interval([best(run[arm]) for run in have]),
                interval([best(run[arm]) - best(run["uniform"]) for run in have]),
                f"{statistics.mean(run[arm]['noise'] for run in have):.0%}",
                f"{len(hits)}/{len(have)}",
                interval([steps for steps, _ in hits], ".0f"),
            ]
            if arm in step and "uniform" in step:
                base = [steps_to(run["uniform"]["curve"], best(run["uniform"])) for _, run in hits]
                factor = step[arm][0] / step["uniform"][0]
                each = [100 * (factor * s / b - 1) for (s, _), b in zip(hits, base, strict=True) if b]
                cells += [interval([s * step[arm][0] for s, _ in hits]), interval(each, "+.1f")]
            lines.append(f"{arm:<16}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=False)))
        lines += against(runs, step)
        reference = [run["reference"]["curve"][-1][2] for run in runs if "reference" in run]
        lines += [f"reference model's MRR: {interval(reference)}"]
    return "\n".join(lines)


def against(runs: list[dict[str, Any]], step: dict[str, tuple[float, float]]) -> list[str]:
    """Joint against independent, seed by seed: to uniform's best MRR, and to independent's own."""
    lines = []
    for arm in ("joint", "joint, 4 rounds"):
        gaps = [best(run[arm]) - best(run["independent"]) for run in runs if arm in run and "independent" in run]
        if gaps:
            lines.append(f"{arm} less independent, seed by seed: best MRR {interval(gaps, '+.2f')}")
        if gaps and arm in step and "independent" in step:
            extra = step[arm][0] - step["independent"][0]
            lines.append(f"  its choice takes {1e3 * extra:.1f} ms a step more, whatever the model's size")
    for arm, bar in itertools.product(("joint", "joint, 4 rounds"), ("uniform", "independent")):
        pairs = []
        for run in runs:
            if arm in run and "independent" in run:
                ours, theirs = (steps_to(run[a]["curve"], best(run[bar])) for a in (arm, "independent"))
                if ours is not None and theirs is not None:
                    pairs.append(100 * (ours / theirs))
        if not pairs:
            continue
        line = f"{arm} less independent, to {bar}'s best ({len(pairs)} seeds): steps "
        line += interval([p - 100 for p in pairs], "+.1f") + " %"
        if arm in step and "independent" in step:
            factor = step[arm][0] / step["independent"][0]
            line += f", seconds {interval([p * factor - 100 for p in pairs], '+.1f')} %"
        lines.append(line)
    return lines


def draw(results: dict[str, Any], step: dict[str, tuple[float, float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    noises = sorted({key.split("/")[0] for key in results}, key=float)
    figure, axes = pyplot.subplots(
        len(noises), 2, figsize=(10, 4.2 * len(noises)), sharey="row", squeeze=False, layout="constrained"
    )
    for noise, (left, right) in zip(noises, axes, strict=True):
        for arm in ARMS:
            curves = [run[arm]["curve"] for key, run in results.items() if key.split("/")[0] == noise and arm in run]
            if not curves:
                continue
            steps, mrr = np.array(curves)[0, :, 0], np.array(curves)[:, :, 2]
            half = stats.t.ppf(0.975, len(mrr) - 1) * mrr.std(0, ddof=1) / len(mrr) ** 0.5 if len(mrr) > 1 else 0
            for axis, x in ((left, steps), (right, steps * step[arm][0] if arm in step else None)):
                if x is not None:
                    axis.plot(x, mrr.mean(0), label=arm)
                    axis.fill_between(x, mrr.mean(0) - half, mrr.mean(0) + half, alpha=0.12)
        left.set(title=f"{float(noise):.0%} of pairs shuffled", xlabel="step", ylabel="MRR × 100 (band: 95 %)")
        right.set(title="the same", xlabel="seconds, scoring and choosing included")
        for axis in (left, right):
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"figure: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.3], help="shares of shuffled pairs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--time", type=int, default=100, help="steps of the timing")
    parser.add_argument("--minutes", type=float, default=30, help="start no new run after this long")
    parser.add_argument("--results", type=Path, default=Path("out/jest_training.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/jest.png"))
    parser.add_argument("--threads", type=int, default=1, help="of torch; more pay off on larger models only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin = time.monotonic()
    data = pq.read_table(data_dir() / "pairs" / "tldr.parquet", columns=["query", "positive"])
    queries, positives = (Texts(data[name].to_pylist()) for name in ("query", "positive"))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for seed, noise in itertools.product(range(args.seeds), args.noise):
        out = results.setdefault(f"{noise}/{seed}", {})
        done = run_seed(Seed(queries, positives, len(data), noise, seed, args), out)
        while time.monotonic() - begin < 60 * args.minutes and (arm := next(done, None)):
            args.results.write_text(json.dumps(results))
            print(f"noise {noise:.0%}, seed {seed}, {arm}: {out[arm]['curve'][-1][2]:.1f}", flush=True)
    one = Seed(queries, positives, len(data), args.noise[0], 0, args)
    timing = time_arms(one, args.time) if args.time and one.cache.exists() else {}
    print(table(results, timing))
    draw(results, medians(timing), args.figure)


if __name__ == "__main__":
    main()
