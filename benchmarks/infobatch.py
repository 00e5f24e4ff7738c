"""InfoBatch: what an epoch and a step cost, and what pruning saves on Fashion-MNIST.

python -m benchmarks.infobatch --speed
python -m benchmarks.infobatch --accuracy            # writes docs/figures/infobatch.png
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from benchmarks.common import Timing, data_dir, ratio, timed
from curation import InfoBatch, StochasticAcquisition
from curation.plan import BatchPlan
from curation.selectors.importance import Importance
from curation.selectors.infobatch import by_progress, one_cycle
from curation.selectors.samplers import AcquisitionSampler, ImportanceSampler, InfoBatchSampler, PlanBatchSampler

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "infobatch.png"


def the_public_way(scores: np.ndarray, weights: np.ndarray) -> list[int]:
    """An epoch as the public implementation makes it: numpy masks, then one Python list, which numpy shuffles."""
    keep = scores < scores.mean()
    learned, rest = np.flatnonzero(keep), np.flatnonzero(~keep).tolist()
    chosen = np.random.default_rng(0).choice(learned, int(0.5 * len(learned)), replace=False)
    weights[:] = 1
    if len(chosen) > 0:
        weights[chosen] *= 2
        rest.extend(chosen)
    np.random.default_rng(1).shuffle(rest)
    return rest


def time_epochs(size: int, repeats: int) -> None:
    """What an epoch's start takes; the ways are interleaved, so that a busy moment hits all of them."""
    losses = np.random.default_rng(0).standard_exponential(size, dtype=np.float32)
    info = InfoBatch(size=size, epochs=10**6)
    info.begin(0)
    info.update(np.arange(size), losses)
    weights, epochs = np.ones(size), iter(range(1, 10**6))
    ways: dict[str, Callable[[], object]] = {
        "Python list and shuffle": lambda: the_public_way(losses, weights),
        "InfoBatch.epoch (a checked Selection)": lambda: info.epoch(next(epochs)),
        "InfoBatch.order (what a sampler uses)": lambda: info.order(next(epochs)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    info.epoch(next(epochs))
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way, repeats=1, warmup=0).median)
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    theirs = timings["Python list and shuffle"]
    print(f"An epoch's start, N = {size:,}, {repeats} interleaved repeats: median (range)")
    for name, timing in timings.items():
        print(f"  {name:40} {timing!s:28} {ratio(theirs, timing)}")


def time_steps(sizes: list[int]) -> None:
    """What a step takes, whatever N is: the next batch, and the update that records its losses."""
    print("\nA step of 1,024: median (and 95th percentile) of up to 300, in microseconds; the target is < 1,000")
    print(f"  {'':22}{'N':>13}{'batch':>19}{'update':>19}{'epoch begun in':>17}")
    for n in sizes:
        info = InfoBatch(size=n, epochs=100)
        one_size(n, "InfoBatchSampler", InfoBatchSampler(info, batch_size=1024), info.update)
        state = sum(state.nbytes for state in info.state_dict().values() if isinstance(state, Tensor))
        del info
        importance = Importance(size=n)
        drawing = ImportanceSampler(importance, batch_size=1024, draws=min(n, 10**6))
        one_size(n, "ImportanceSampler", drawing, importance.update)
        del importance, drawing
        plan = BatchPlan.of_size(np.arange(n), 1024)
        one_size(n, "PlanBatchSampler", PlanBatchSampler(plan), None)
        del plan
    print(f"  InfoBatch's state: {state / n:.2f} bytes a candidate, and 4 more for each kept one while an epoch runs")
    scores = np.random.default_rng(0).random(10**6)
    draws = iter(AcquisitionSampler(scores, StochasticAcquisition(), size=10**6, batch_size=1024))
    taken = timed(lambda: next(draws), repeats=5)
    print(f"  AcquisitionSampler reads all scores anew for each draw, O(N): {taken} at N = 1,000,000")


def one_size(n: int, name: str, sampler: Iterable[Any], update: Callable[..., object] | None) -> None:
    start = time.perf_counter()
    batches = iter(sampler)
    next(batches)
    begun = time.perf_counter() - start
    drawn, updated, losses = [], [], torch.rand(1024)
    for _ in range(min(300, n // 1024 - 2)):
        start = time.perf_counter()
        batch = next(batches)
        middle = time.perf_counter()
        drawn.append(middle - start)
        if update is not None:
            update(batch, losses)
            updated.append(time.perf_counter() - middle)

    def cell(seconds: list[float]) -> str:
        if not seconds:
            return "–"
        low, high = np.percentile(seconds, [50, 95]) * 1e6
        return f"{low:.0f} ({high:.0f})"

    print(f"  {name:22}{n:>13,}{cell(drawn):>19}{cell(updated):>19}{begun:>15.3g} s", flush=True)


class Net(nn.Module):
    """Two convolutions and two linear layers, 28 × 28 pixels to 10 classes; 56,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.hidden, self.out = nn.Linear(32 * 49, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.second(relu(self.first(x)))).flatten(1)
        return self.out(relu(self.hidden(x)))


def fashion(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(data_dir() / "images" / "fashion_mnist.npz") as arrays:
        names = {key.lower(): arrays[key] for key in arrays.files}
    pick = np.random.default_rng(0).permutation(len(names["x_train"]))[:size]

    def images(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.5)

    labels = [torch.from_numpy(names[key].astype(np.int64)) for key in ("y_train", "y_test")]
    return images(names["x_train"][pick]), labels[0][pick], images(names["x_test"]), labels[1]


def train(
    data: tuple[Tensor, Tensor, Tensor, Tensor], *, how: str, epochs: int, seed: int, share: float, ratio: float
) -> tuple[float, float]:
    """(test accuracy, share of forward and backward passes saved) of one run.

    ``how`` is ``full``, ``infobatch``, ``random`` (each epoch a random ``share`` of the data, with annealing as
    InfoBatch has it), or ``shorter`` (full epochs, as many as the same passes allow).
    """
    x, y, test_x, test_y = data
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    info = InfoBatch(size=len(x), epochs=epochs, prune_ratio=ratio if how == "infobatch" else 0.0, seed=seed)
    progress, done, budget = info.progress, 0, share * epochs * len(x)
    if how in ("random", "shorter"):
        progress = lambda: done / budget  # noqa: E731
    scheduler = by_progress(optimizer, progress, one_cycle)
    for epoch in range(epochs):
        order = info.order(epoch)
        if how == "random" and epoch < info.annealing_from:
            annealed = (epochs - info.annealing_from) * len(x)
            order = order[: round((budget - annealed) / info.annealing_from)]
        if how == "shorter":
            order = order[: max(0, round(budget) - done)]
        for batch in np.array_split(order, max(1, math.ceil(len(order) / 128))) if len(order) else []:
            index = torch.from_numpy(batch.astype(np.int64))
            losses = cross_entropy(model(x[index]), y[index], reduction="none")
            loss = info.update(index, losses).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += len(batch)
            scheduler.step()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(test_x.split(1000), test_y.split(1000), strict=True)
        )
    return right / len(test_y), 1 - done / (epochs * len(x))


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], math.nan
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)


def accuracy(size: int, epochs: int, seeds: int, figure: Path | None) -> None:
    data = fashion(size)
    print(f"Fashion-MNIST, {size:,} training images, {epochs} epochs, {seeds} seeds; mean ± 95 % interval")
    rows: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, list[float]] = {}

    def measure(name: str, how: str, seed: int, share: float = 1, ratio: float = 0.5) -> float:
        start = time.perf_counter()
        rows.setdefault(name, []).append(train(data, how=how, epochs=epochs, seed=seed, share=share, ratio=ratio))
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return rows[name][-1][1]

    for seed in range(seeds):
        measure("full training", "full", seed)
        saved = measure("InfoBatch, r = 0.5", "infobatch", seed)
        measure("random pruning, same saving", "random", seed, 1 - saved)
        measure("fewer epochs, same saving", "shorter", seed, 1 - saved)
    base = [a for a, _ in rows["full training"]]
    print(f"{'':30} {'accuracy %':>16} {'against full':>16} {'passes saved':>13} {'seconds':>8}")
    for name, runs in rows.items():
        mean, half = interval([100 * a for a, _ in runs])
        gap, gap_half = interval([100 * (a - b) for (a, _), b in zip(runs, base, strict=True)])
        saving = statistics.mean(s for _, s in runs)
        print(
            f"{name:30} {mean:8.2f} ± {half:5.2f} {gap:+8.2f} ± {gap_half:5.2f} {saving:12.1%}"
            f" {statistics.median(seconds[name]):8.1f}"
        )
    if figure is not None:
        draw(rows, figure)


def draw(rows: dict[str, list[tuple[float, float]]], figure: Path) -> None:
    """Accuracy against passes saved, a dot a seed and the mean with its interval, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for place, (name, runs) in enumerate(rows.items()):
        mean, half = interval([100 * a for a, _ in runs])
        saving = 100 * statistics.mean(s for _, s in runs)
        axes.plot([place] * len(runs), [100 * a for a, _ in runs], "o", color="0.7", zorder=1)
        axes.errorbar(place, mean, half, fmt="s", capsize=5, label=f"{name}: {saving:.0f} % saved")
    axes.set_xticks(range(len(rows)), [name.replace(", ", "\n") for name in rows])
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Fashion-MNIST, small CNN: mean and 95 % interval")
    axes.legend(fontsize="small")
    figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(figure, dpi=150)
    print(f"figure: {figure}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--size", type=int, default=10**7, help="N of the epoch's timing")
    parser.add_argument("--huge", type=int, default=10**8, help="the largest N of the steps' timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the training runs")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--no-figure", action="store_true")
    args = parser.parse_args()
    if args.speed or not args.accuracy:
        time_epochs(args.size, args.repeats)
        time_steps(sorted({10**5, 10**6, 10**7, args.huge}))
    if args.accuracy or not args.speed:
        torch.set_num_threads(args.threads)
        accuracy(args.images, args.epochs, args.seeds, None if args.no_figure else args.figure)


if __name__ == "__main__":
    main()
