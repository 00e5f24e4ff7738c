"""Stochastic acquisition beside baal and batchbald-redux, in one run.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch==2.13.0
    /tmp/peers/bin/pip install baal==2.1.0 batchbald-redux==2.0.5 torchvision==0.28.0
    /tmp/peers/bin/pip uninstall -y torchvision
    python -m benchmarks.acquisition --peer-python /tmp/peers/bin/python

The peers run in their own environment, in a child of this process, on the same arrays. baal
asks for torchvision, whose newest version would replace torch, and which does not import beside a CPU build of
torch; what is measured here does without.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Timing, ratio, timed

PEER_PACKAGES = ("baal", "batchbald-redux", "torch", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="/tmp/peers/bin/python", help="interpreter that has the peers")
    parser.add_argument("--scores", type=int, default=10_000_000, help="pool of the power sampling")
    parser.add_argument("--draw", type=int, default=1_000, help="how many of it are drawn")
    parser.add_argument("--pool", type=int, default=20_000, help="pool of BatchBALD, with 20 samples, 10 classes")
    parser.add_argument("--joint-samples", type=int, default=1_000, help="joint outcomes BatchBALD samples")
    parser.add_argument(
        "--baal-pool", type=int, default=1_000, help="baal's BatchBALD holds candidates × joint samples × classes"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=3, help="repeats of BatchBALD; no warm-up")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        run_peers(options, options.as_peer)
    else:
        compare(options)


def inputs(options: argparse.Namespace) -> tuple[Any, Any]:
    """float64[scores] to sample from, and float64[pool, 20, 10] class probabilities."""
    rng = np.random.default_rng(0)
    scores = rng.exponential(size=options.scores)
    logits = rng.normal(size=(options.pool, 1, 10)) * 2 + rng.normal(size=(options.pool, 20, 10))
    odds = np.exp(logits)
    return scores, odds / odds.sum(-1, keepdims=True)


def compare(options: argparse.Namespace) -> None:
    import torch

    from curation.selectors.acquisition import StochasticAcquisition
    from curation.selectors.uncertainty import bald

    scores, p = inputs(options)
    tensor = torch.from_numpy(scores)
    power, rank = StochasticAcquisition(), StochasticAcquisition(kind="soft-rank")
    softmax = StochasticAcquisition(kind="softmax")
    draw, repeats = options.draw, options.repeats
    ours = {
        "power": timed(lambda: power.select(scores, draw, seed=1), repeats=repeats),
        "power, torch tensor": timed(lambda: power.draw(tensor, draw, seed=1), repeats=repeats),
        "softmax": timed(lambda: softmax.select(scores, draw, seed=1), repeats=repeats),
        "soft-rank": timed(lambda: rank.select(scores, draw, seed=1), repeats=repeats),
        "power, four shards merged": timed(lambda: sharded(power, scores, draw), repeats=repeats),
    }
    numpy_choice = timed(lambda: choice(scores, draw), repeats=repeats)
    multinomial = timed(lambda: torch.multinomial(tensor, draw), repeats=repeats) if len(scores) < 2**24 else None
    batch = timed(lambda: power.select(bald(p), 100, seed=1), repeats=max(repeats, options.slow_repeats))
    alone = timed(functools.partial(power.select, bald(p), 100, seed=1), repeats=repeats)
    scoring = timed(lambda: bald(p), repeats=repeats)

    print(f"\nDraw {draw:,} of {options.scores:,} scores (float64, numpy), {torch.get_num_threads()} threads")
    line("", "seconds, median (min-max)", "ours is faster by")
    for name, timing in ours.items():
        line(f"curation, {name}", timing, "")
    line("numpy Generator.choice(replace=False, p)", numpy_choice, ratio(numpy_choice, ours["power"]))
    if multinomial:
        line("torch.multinomial", multinomial, ratio(multinomial, ours["power"]))
    print(f"\nA batch from {options.pool:,} candidates, 20 samples, 10 classes")
    line("", "seconds, median (min-max)", "ours is faster by")
    line("curation, BALD scores + power sampling of 100", batch, "")
    line("curation, power sampling of 100 alone", alone, "")
    print("\nBALD scores of these candidates")
    line("curation", scoring, "")

    peers = ask_peers(options)
    if not peers:
        return
    baal, theirs = Timing(tuple(peers["baal power"])), Timing(tuple(peers["baal bald"]))
    print(f"\nPeers: {', '.join(f'{name} {version}' for name, version in peers['versions'].items())}")
    line(f"baal PowerSampling of {draw:,}", baal, ratio(baal, ours["power"]))
    line("baal BALD scores", theirs, ratio(theirs, scoring))
    first = Timing(batch.seconds[: options.slow_repeats])
    for name, key in (
        ("batchbald-redux BatchBALD of 5", "redux batchbald"),
        (f"baal BatchBALD of 5, from {options.baal_pool:,} alone", "baal batchbald"),
    ):
        timing = Timing(tuple(peers[key]))
        line(name, timing, ratio(timing, first))
    print(f"largest difference from baal's scores: {np.abs(np.array(peers['bald']) - bald(p)).max():.2g}")


def sharded(method: Any, scores: Any, k: int) -> Any:
    cuts = np.linspace(0, len(scores), 5).astype(int)
    parts = [method.local(scores[a:b], k, seed=1, start=int(a)) for a, b in itertools.pairwise(cuts)]
    return method.merge(parts, k)


def choice(scores: Any, k: int) -> Any:
    return np.random.default_rng(1).choice(len(scores), k, replace=False, p=scores / scores.sum())


def line(name: str, timing: Timing | str, note: str) -> None:
    print(f"  {name:<48}{timing!s:<30}{note}", flush=True)


def ask_peers(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the peers' process measured; None, with a word to the user, where there is no such interpreter."""
    if not Path(options.peer_python).is_file():
        print(f"\nno peers: {options.peer_python} does not exist (see --help for how to make it)")
        return None
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        numbers = ("scores", "draw", "pool", "joint_samples", "baal_pool", "repeats", "slow_repeats")
        arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in numbers]
        subprocess.run(
            [options.peer_python, "-W", "ignore", "-m", "benchmarks.acquisition", *arguments, f"--as-peer={answer}"],
            cwd=Path(__file__).resolve().parents[1],
            check=True,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def run_peers(options: argparse.Namespace, answer: Path) -> None:
    """In the peers' interpreter: measure, and write seconds and scores as JSON."""
    import torch
    from baal.active.heuristics import BALD, AbstractHeuristic, BatchBALD
    from baal.active.heuristics.stochastics import PowerSampling
    from batchbald_redux.batchbald import get_batchbald_batch

    class Given(AbstractHeuristic):  # type: ignore[misc]
        """baal samples from a heuristic's scores; these are given."""

        def compute_score(self, predictions: Any, target_predictions: Any = None) -> Any:
            return predictions

    scores, p = inputs(options)
    by_class = np.ascontiguousarray(p.transpose(0, 2, 1))
    log_p = torch.from_numpy(p).log()
    few = by_class[: options.baal_pool]
    power = PowerSampling(Given(), query_size=options.draw)
    slow: dict[str, Callable[[], object]] = {
        "redux batchbald": lambda: get_batchbald_batch(
            log_p, 5, options.joint_samples, dtype=torch.double, device="cpu"
        ),
        "baal batchbald": lambda: BatchBALD(num_samples=5, num_draw=options.joint_samples // 20).get_ranks(few),
    }
    result: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in PEER_PACKAGES},
        "bald": BALD().compute_score(by_class).tolist(),
        "baal bald": timed(lambda: BALD().compute_score(by_class), repeats=options.repeats).seconds,
        "baal power": timed(lambda: power.get_ranks(scores), repeats=options.repeats).seconds,
    }
    for name, run in slow.items():
        result[name] = timed(run, repeats=options.slow_repeats, warmup=0).seconds
    answer.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
