"""A pipeline under fire: SIGKILL at random moments, a hundred times, with edits in between and meanwhile.

``python -m benchmarks.soak.pipeline``. A run on a Ray cluster of two nodes loses its driver, a worker or a node;
recipe, targets, code, what the code imports, and rows are edited between two starts, and some of them while the run
works. Whatever comes to an end must be, row by row, what a plain loop makes of one state of all these files: never a
mixture.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil

from curation.dataset import Dataset
from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.zipfit import ZipFit

ROWS = 1200
BLOCK_ROWS = 24
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}
RAY = Path(sys.executable).parent / "ray"
SCORER = """
import time

import helper

def score(table, weight):
    time.sleep(0.05)
    return [(helper.value(text) * SIGN) * weight for text in table["text"].to_pylist()]
"""
HELPER = "def value(text):\n    return len(text) + FACTOR * (sum(text.encode()) % 97)\n"
DRIVER = """
import sys
from curation.cli import main
main(sys.argv[1:])
"""
TARGETS = ("def g(): return merge + sort + list", "yield token open file")
EXPECTED_ERRORS = ("while the run used it", "another input", "run again", "changed while", "changed since")


@dataclass(frozen=True)
class State:
    """One state of all that the result depends on."""

    rows: int = 0
    target: int = 0
    sign: int = 1
    factor: int = 1
    weight: float = 1.0
    kind: str = "top-k"
    count: int = 100
    seed: int = 0
    rows_per_shard: int = 30

    def edited(self, dice: random.Random, names: tuple[str, ...]) -> "State":
        """With one thing changed."""
        choices = {
            "rows": [0, 1],
            "target": [0, 1],
            "sign": [1, -1],
            "factor": [1, 5],
            "weight": [1.0, 2.0],
            "kind": ["top-k", "softmax"],
            "count": [60, 100, 150],
            "seed": [0, 1],
            "rows_per_shard": [30, 70],
        }
        name = dice.choice(names)
        return replace(self, **{name: dice.choice([value for value in choices[name] if value != getattr(self, name)])})

    def texts(self) -> list[str]:
        """The rows."""
        rng = np.random.default_rng((7, self.rows))
        words = ["merge", "sort", "list", "parse", "json", "open", "file", "token", "yield", "value"]
        return [f"def f{row}(): return " + " + ".join(rng.choice(words, 12)) for row in range(ROWS)]

    def write(self, home: Path) -> None:
        """Write the files, each only where it changes: an editor touches nothing else."""
        files = {
            "rows.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in self.texts()),
            "target.jsonl": json.dumps({"text": TARGETS[self.target]}) + "\n",
            "scorer.py": SCORER.replace("SIGN", str(self.sign)),
            "helper.py": HELPER.replace("FACTOR", str(self.factor)),
            "recipe.yaml": json.dumps(
                {
                    "source": {"format": "jsonl", "path": "rows.jsonl"},
                    "steps": [
                        {"step": "align", "targets": {"format": "jsonl", "path": "target.jsonl"}},
                        {"step": "score", "function": "scorer:score", "parameters": {"weight": self.weight}},
                        {"step": "acquire", "score": "score", "kind": self.kind, "count": self.count, "beta": 0.1},
                    ],
                    "seed": self.seed,
                    "block_rows": BLOCK_ROWS,
                    "output": {"rows_per_shard": self.rows_per_shard},
                }
            ),
        }
        for name, text in files.items():
            path = home / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def expected(self) -> dict[str, np.ndarray]:
        """Positions, texts and scores that are kept, by a plain loop."""
        texts = self.texts()
        alignment = ZipFit(targets=[TARGETS[self.target]]).score(texts)
        values = [len(text) + self.factor * (sum(text.encode()) % 97) for text in texts]
        score = np.array(values) * self.sign * self.weight
        if self.kind == "top-k":
            kept = np.argsort(-score, kind="stable")[: self.count]
        else:
            method = StochasticAcquisition(kind="softmax", beta=0.1)
            kept = method.select(score, self.count, seed=(self.seed, 3)).indices
        kept = np.sort(kept)
        return {"_index": kept, "text": np.array(texts)[kept], "alignment": alignment[kept], "score": score[kept]}


@dataclass
class Fire:
    """The cluster, and what was done to it."""

    home: Path
    dice: random.Random
    port: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    head: subprocess.Popen[bytes] | None = None
    node: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a head node of one CPU."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.head = self._ray("--head", f"--port={self.port}", "--num-cpus=1", "--include-dashboard=false")
        time.sleep(8)
        self.start_node()

    def start_node(self) -> None:
        """Start a second node, where there is none."""
        if self.node is None or self.node.poll() is not None:
            # By an address of its own: Ray ties a driver to a node by address.
            options = ("--num-cpus=2", "--node-ip-address=127.0.0.2")
            self.node = self._ray(f"--address=127.0.0.1:{self.port}", *options)

    def _ray(self, *options: str) -> subprocess.Popen[bytes]:
        with (self.home.parent / "ray.log").open("ab") as log:
            # A node dies with its agent, and two agents of one machine want the same port.
            common = ("--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0")
            command = [str(RAY), "start", *common, *options]
            # Workers look for the user's code where the driver does, and find nothing of the kind where they start.
            return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, cwd="/", start_new_session=True)

    def stop(self) -> None:
        """Kill all of it."""
        for node in (self.node, self.head):
            if node is not None:
                _kill_tree(node.pid)

    def driver(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the run."""
        command = [sys.executable, "-c", DRIVER, "run", "recipe.yaml", "-o", "out", *options]
        command += ["--ray-address", f"127.0.0.1:{self.port}"]
        with (self.home.parent / "driver.log").open("wb") as log:
            return subprocess.Popen(command, cwd=self.home, env=ENVIRONMENT, stdout=log, stderr=log)

    def shoot(self, driver: subprocess.Popen[bytes]) -> str:
        """Kill the driver, a worker or a node."""
        what = self.dice.choices(["driver", "worker", "node"], [5, 3, 2])[0]
        if what == "worker":
            workers = [process for process in _below(self.head, self.node) if _is_worker(process)]
            if not workers:
                return ""
            with contextlib.suppress(psutil.NoSuchProcess):
                self.dice.choice(workers).kill()
        elif what == "node":
            if self.node is None or self.node.poll() is not None:
                return ""
            _kill_tree(self.node.pid)
            self.node.wait()
        else:
            driver.kill()
            driver.wait()
        self.kills[what] += 1
        return what


def _below(*roots: subprocess.Popen[bytes] | None) -> list[psutil.Process]:
    found = []
    for root in roots:
        if root is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(root.pid).children(recursive=True)
    return found


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
        title = process.cmdline()[0]
        return title.startswith("ray::") and not title.endswith(("IDLE", "Agent"))
    return False


def _kill_tree(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _is(out: Path, state: State) -> bool:
    dataset = Dataset(out)
    rows = dataset.to_datasets().to_pandas()
    wanted = state.expected()
    return len(rows) == len(wanted["_index"]) and all(
        np.array_equal(rows[name].to_numpy(), values) for name, values in wanted.items()
    )


BETWEEN = ("rows", "target", "sign", "factor", "weight", "kind", "count", "seed", "rows_per_shard")
MEANWHILE = ("rows", "target", "sign", "factor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    home = Path(tempfile.mkdtemp(prefix="kills-")) / "home"
    home.mkdir()
    fire = Fire(home, dice)
    begun = time.monotonic()
    seen: Counter[str] = Counter()
    try:
        fire.start()
        state, restart = State(), False
        while fire.kills.total() < arguments.kills:
            for _ in range(dice.choice([0, 1, 1, 2])):
                state = state.edited(dice, BETWEEN)
                seen["edits between"] += 1
            state.write(home)
            states = [state]
            fire.start_node()
            driver = fire.driver(*(["--restart"] if restart else []))
            seen["starts"] += 1
            restart = False
            # Some starts get far, and some to their end.
            longest = dice.choice([2, 6, 20])
            while driver.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(dice.uniform(0.5, longest))
                if driver.poll() is None and fire.shoot(driver) != "driver" and dice.random() < 0.3:
                    state = state.edited(dice, MEANWHILE)
                    state.write(home)
                    states.append(state)
                    seen["edits meanwhile"] += 1
            log = (home.parent / "driver.log").read_text()
            if (home / "out").exists():  # also where the driver was killed right behind that
                Dataset(home / "out").verify()
                if not any(_is(home / "out", each) for each in states):
                    raise SystemExit(f"a mixed result: {home}, none of {states}")
                seen["whole results, verified row by row"] += 1
                shutil.rmtree(home / "out")
            elif driver.returncode > 0:
                words = next((words for words in EXPECTED_ERRORS if words in log), None)
                if words is None:
                    raise SystemExit(f"the run ended with {driver.returncode}:\n{log}")
                seen[f"refused: ... {words} ..."] += 1
                restart = "another input" in log
            print(f"{fire.kills.total():4d} kills  {dict(fire.kills)}  {dict(seen)}", flush=True)
    finally:
        fire.stop()
    print(f"\n{fire.kills.total()} kills in {time.monotonic() - begun:.0f} s, and no mixed result")
    for name, count in [(f"kills: {what}", count) for what, count in sorted(fire.kills.items())]:
        print(f"  {name:45s} {count:5d}")
    for name, count in sorted(seen.items()):
        print(f"  {name:45s} {count:5d}")


if __name__ == "__main__":
    main()
