"""Accuracy for each label bought: top-k BALD, power BALD, BatchBALD and random, on MNIST and repeated MNIST.

    python -m benchmarks.active_learning [--seeds 5] [--labels 120]

A perceptron with dropout is trained anew after each batch of labels. The repeated pool holds a quarter as many
images, four noisy copies of each, so both pools are of one size. Top-k, power and random are the project's own;
BatchBALD (Kirsch et al. 2019, arXiv 1906.08158) is written below, in float64, joint entropies exact up to
``--joint-samples`` outcomes and sampled beyond.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from benchmarks.common import data_dir
from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.uncertainty import bald

Indices = npt.NDArray[np.int64]
Choose = Callable[[torch.Tensor, int, tuple[int, ...]], Indices]
"""Probabilities [N, samples, classes] of the unlabelled, how many, seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=2_000, help="images to choose from")
    parser.add_argument("--repeats", type=int, default=4, help="copies of each image in the repeated pool")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of the copies' noise")
    parser.add_argument("--start", type=int, default=20, help="labels to begin with, drawn at random")
    parser.add_argument("--labels", type=int, default=120, help="labels at the end")
    parser.add_argument("--batch", type=int, default=10, help="labels bought at a time")
    parser.add_argument("--samples", type=int, default=20, help="dropout masks for each prediction")
    parser.add_argument("--steps", type=int, default=300, help="training steps after each batch")
    parser.add_argument("--joint-samples", type=int, default=500)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/active_learning.png"))
    options = parser.parse_args()
    methods: dict[str, Choose] = {
        "random": acquire(StochasticAcquisition(beta=0)),
        "top-k BALD": acquire(StochasticAcquisition(beta=np.inf)),
        "power BALD, β = 1": acquire(StochasticAcquisition(beta=1)),
        "power BALD, β = 8": acquire(StochasticAcquisition(beta=8)),
        "BatchBALD": lambda p, k, seed: batchbald(p, k, seed, options.joint_samples),
    }
    # Compiles, so that the first batch's seconds are as the others'.
    methods["random"](torch.full((2, 1, 2), 0.5), 1, (0,))
    curves: dict[str, dict[str, Curve]] = {}
    for pool, copies in (("MNIST", 1), (f"MNIST repeated {options.repeats} times", options.repeats)):
        curves[pool] = {name: Curve([], []) for name in methods}
        for seed in range(options.seeds):
            task = Task.make(options, copies, seed)
            for name, choose in methods.items():
                accuracy, seconds = task.run(choose, options, seed)
                print(f"{pool}, seed {seed}, {name}: {accuracy[-1]:.3f} at the end", file=sys.stderr)
                curves[pool][name].accuracy.append(accuracy)
                curves[pool][name].seconds.append(seconds)
    labels = list(range(options.start, options.labels + 1, options.batch))
    for pool, found in curves.items():
        show(pool, found, labels)
    draw(curves, labels, options.figure)


@dataclass(frozen=True)
class Curve:
    """Of each seed: accuracy after each batch, and mean seconds for choosing one, predictions not counted."""

    accuracy: list[list[float]]
    seconds: list[float]


@dataclass(frozen=True)
class Task:
    """A pool with its hidden labels, and a test set; images as [n, 784] from 0 to 1."""

    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    @classmethod
    def make(cls, options: argparse.Namespace, copies: int, seed: int) -> "Task":
        arrays = mnist()
        rng = np.random.default_rng((seed, copies))
        rows = rng.choice(len(arrays["x_train"]), options.pool // copies, replace=False)
        x = np.tile(arrays["x_train"][rows].reshape(-1, 784) / 255.0, (copies, 1))
        if copies > 1:
            x = x + rng.normal(scale=options.noise, size=x.shape)
        y = np.tile(arrays["y_train"][rows], copies)
        test = torch.from_numpy(arrays["x_test"].reshape(-1, 784)).float() / 255
        return cls(
            torch.from_numpy(x).float(),
            torch.from_numpy(y).long(),
            test,
            torch.from_numpy(arrays["y_test"]).long(),
        )

    def run(self, choose: Choose, options: argparse.Namespace, seed: int) -> tuple[list[float], float]:
        """Accuracy after each batch, and mean seconds for choosing one."""
        labelled = np.random.default_rng((seed, 1)).choice(len(self.x), options.start, replace=False)
        accuracy, seconds = [], []
        while True:
            generator = torch.Generator().manual_seed(1_000_003 * seed + len(labelled))
            model = Perceptron(generator)
            model.train(self.x[labelled], self.y[labelled], options.steps, generator)
            accuracy.append(model.accuracy(self.test_x, self.test_y))
            if len(labelled) >= options.labels:
                return accuracy, float(np.mean(seconds)) if seconds else 0.0
            left = np.setdiff1d(np.arange(len(self.x)), labelled)
            p = model.predict(self.x[left], options.samples, generator)
            began = time.perf_counter()
            chosen = choose(p, options.batch, (seed, len(labelled)))
            seconds.append(time.perf_counter() - began)
            labelled = np.concatenate([labelled, left[chosen]])


@functools.cache
def mnist() -> dict[str, npt.NDArray[np.uint8]]:
    with np.load(data_dir() / "images" / "mnist.npz") as file:
        return {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}


class Perceptron:
    """784-128-128-10 with ReLU, and dropout of one half before the last two layers."""

    def __init__(self, generator: torch.Generator) -> None:
        sizes = [784, 128, 128, 10]
        self.weights = [
            (torch.randn(a, b, generator=generator) * (2 / a) ** 0.5).requires_grad_()
            for a, b in itertools.pairwise(sizes)
        ]
        self.biases = [torch.zeros(size, requires_grad=True) for size in sizes[1:]]

    def logits(self, x: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
        """[..., n, 10]; masks are factors of the two hidden layers, [..., n or 1, 128]."""
        for layer, mask in enumerate(masks):
            x = (x @ self.weights[layer] + self.biases[layer]).relu() * mask
        return x @ self.weights[2] + self.biases[2]

    def train(self, x: torch.Tensor, y: torch.Tensor, steps: int, generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam([*self.weights, *self.biases], lr=1e-3, weight_decay=1e-4)
        for _ in range(steps):
            masks = [torch.randint(0, 2, (len(x), 128), generator=generator) * 2.0 for _ in range(2)]
            loss = torch.nn.functional.cross_entropy(self.logits(x, masks), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def predict(self, x: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
        """float64[n, samples, 10]: one mask a sample, the same for all rows, as joint entropies need."""
        masks = [torch.randint(0, 2, (samples, 1, 128), generator=generator) * 2.0 for _ in range(2)]
        return self.logits(x, masks).double().softmax(2).transpose(0, 1).contiguous()

    @torch.no_grad()
    def accuracy(self, x: torch.Tensor, y: torch.Tensor) -> float:
        found = self.logits(x, [torch.ones(1, 128)] * 2).argmax(1)
        return float((found == y).double().mean())


def acquire(method: StochasticAcquisition) -> Choose:
    """BALD scores, then this way of drawing."""
    return lambda p, k, seed: method.select(bald(p), k, seed=seed).indices


def batchbald(p: torch.Tensor, k: int, seed: tuple[int, ...], joint_samples: int) -> Indices:
    """Greedily maximise the mutual information of the batch's joint label and the parameters."""
    n, samples, classes = p.shape
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    noise = torch.special.entr(p).sum(2).mean(1)
    flat = p.transpose(0, 1).reshape(samples, n * classes)
    chosen: list[int] = []
    outcomes = torch.ones(1, samples, dtype=p.dtype)
    for _ in range(k):
        exact = classes ** len(chosen) <= joint_samples
        if exact and chosen:
            outcomes = (outcomes[:, None] * p[chosen[-1]].T).reshape(-1, samples)
        elif chosen:
            outcomes = sampled_outcomes(p[chosen], joint_samples, generator)
        joint = outcomes @ flat / samples
        terms = torch.special.entr(joint)
        if not exact:
            terms /= outcomes.mean(1, keepdim=True) * len(outcomes)
        gain = terms.sum(0).reshape(n, classes).sum(1) - noise
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
    return np.array(chosen, np.int64)


def sampled_outcomes(p: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, samples]: how likely joint labels drawn from the model are under each sample of the parameters."""
    drawn = torch.randint(0, p.shape[1], (count,), generator=generator)
    likelihood = torch.ones(count, p.shape[1], dtype=p.dtype)
    for one in p:
        label = torch.multinomial(one[drawn], 1, generator=generator)[:, 0]
        likelihood *= one[:, label].T
    return likelihood


def interval(values: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean over the first axis, and half the width of its 95 % interval (Student's t)."""
    array = np.asarray(values, np.float64)
    spread = array.std(0, ddof=1) / np.sqrt(len(array)) * stats.t.ppf(0.975, len(array) - 1)
    return array.mean(0), spread


def show(pool: str, curves: dict[str, Curve], labels: list[int]) -> None:
    columns = sorted({labels[round(i * (len(labels) - 1) / 4)] for i in range(5)})
    seeds = len(curves["random"].accuracy)
    print(f"\n{pool}: test accuracy in %, mean ± half of the 95 % interval over {seeds} seeds")
    head = "".join(f"{f'{count} labels':>15}" for count in columns)
    print(f"  {'':<20}{head}{'mean of curve':>16}{'seconds a batch':>18}")
    areas = {name: np.mean(np.array(curve.accuracy)[:, 1:], axis=1) * 100 for name, curve in curves.items()}
    for name, curve in curves.items():
        mean, half = interval(np.array(curve.accuracy) * 100)
        cells = "".join(f"{f'{mean[i]:.1f} ± {half[i]:.1f}':>15}" for i in map(labels.index, columns))
        area, around = interval(areas[name])
        seconds = interval(curve.seconds)
        print(f"  {name:<20}{cells}{f'{area:.2f} ± {around:.2f}':>16}{f'{seconds[0]:.3g} ± {seconds[1]:.1g}':>18}")
    print("  difference of the curves' means, seed by seed:")
    for first, second in (
        ("power BALD, β = 1", "BatchBALD"),
        ("power BALD, β = 8", "BatchBALD"),
        ("power BALD, β = 1", "top-k BALD"),
        ("power BALD, β = 8", "top-k BALD"),
        ("top-k BALD", "random"),
        ("BatchBALD", "random"),
    ):
        mean, half = interval(areas[first] - areas[second])
        print(f"    {f'{first} less {second}':<36}{mean:+.2f} ± {half:.2f}")


def draw(curves: dict[str, dict[str, Curve]], labels: list[int], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, (pool, found) in zip(axes, curves.items(), strict=True):
        for name, curve in found.items():
            mean, half = interval(np.array(curve.accuracy) * 100)
            axis.plot(labels, mean, label=name)
            axis.fill_between(labels, mean - half, mean + half, alpha=0.15)
        axis.set(title=pool, xlabel="labels")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, % (band: 95 % interval)")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main()
