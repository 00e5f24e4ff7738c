"""ZIP-FIT beside the `zip-fit` package: `python -m benchmarks.zipfit`.

Exact mode: the same sources, targets, codec and level, each contender in a process of its own, run in turn.
Shortlist mode: the best 1 % of the whole pool, and how many of the exact best 1 % are among them.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Timing, data_dir, ratio, timed

POOL = ("python_functions", "prose", "formal_math", "other_code")
TARGETS = ("humaneval", "proofnet")
LEVELS = {"lz4": 0, "gzip": 1, "zstd": 1}


def texts(names: tuple[str, ...]) -> pa.ChunkedArray:
    tables = [pq.read_table(data_dir() / "text" / f"{name}.parquet", columns=["text"]) for name in names]
    return pa.concat_tables(tables)["text"]


def sampled(column: pa.ChunkedArray, count: int) -> list[str]:
    """Distinct texts, drawn evenly: the peer's output names sources by their text."""
    distinct = column.unique()
    rows = np.random.default_rng(0).permutation(len(distinct))[:count]
    return distinct.take(pa.array(np.sort(rows))).to_pylist()


class Contender:
    """A child process that scores once for every line, and the most memory its process tree ever held."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak = 0
        self._watching = True
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a contender ended early; its message is above")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._watching = False
        self._watch.join()
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _sample(self) -> None:
        parent = psutil.Process(self._process.pid)
        while self._watching:
            with contextlib.suppress(psutil.Error):
                tree = [parent, *parent.children(recursive=True)]
                self.peak = max(self.peak, sum(_proportional(process) for process in tree))
            time.sleep(0.1)


def _proportional(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(getattr(process.memory_full_info(), "pss", 0))
    return 0


@contextlib.contextmanager
def contenders(commands: dict[str, list[str]]) -> Iterator[dict[str, Contender]]:
    started = {name: Contender(command) for name, command in commands.items()}
    try:
        yield started
    finally:
        for contender in started.values():
            contender.close()


def work(job: dict[str, Any], threads: int | None) -> None:
    """Our side of :mod:`benchmarks.peers.zipfit`."""
    from curation import ZipFit

    scores = np.empty(0)
    for line in sys.stdin:
        if line.strip() == "scores":
            print(json.dumps(scores.tolist()), flush=True)
            continue
        start = time.perf_counter()
        selector = ZipFit(targets=job["targets"], codec=job["codec"], level=job["level"], threads=threads)
        scores = selector.score(job["sources"])
        print(json.dumps(time.perf_counter() - start), flush=True)


def exact(options: argparse.Namespace) -> float:
    """Print the table of exact mode; returns the peer's pairs per second with lz4."""
    targets = sampled(texts(TARGETS), options.targets)
    peer_rate = float("nan")
    print(f"\nExact alignment, {len(targets)} targets, median of {options.repeats} runs in turn (min–max)")
    print(f"{'codec':6} {'pairs':>9}  {'zip-fit':>24} {'curation':>24}  {'ratio':>18}  peak MB zip-fit / curation")
    for codec in options.codecs:
        count = options.sources if codec == "lz4" else options.sources // 4
        sources = sampled(texts(POOL), count)
        pairs = len(sources) * len(targets)
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job.json"
            fields = {"sources": sources, "targets": targets, "codec": codec, "level": LEVELS[codec]}
            job.write_text(json.dumps(fields))
            peer = str(Path(__file__).parent / "peers" / "zipfit.py")
            commands = {
                "zip-fit": [options.peer_python, peer, str(job)],
                "curation": [sys.executable, "-m", "benchmarks.zipfit", "--work", str(job)],
            }
            with contenders(commands) as running:
                seconds: dict[str, list[float]] = {name: [] for name in running}
                for turn in range(options.repeats + 1):
                    for name, contender in running.items():
                        spent = contender.ask("run")
                        if turn > 0:
                            seconds[name].append(spent)
                theirs, ours = (np.array(running[name].ask("scores")) for name in commands)
                peaks = [running[name].peak / 1e6 for name in commands]
        timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
        shown = [_rates(pairs, timings[name]) for name in commands]
        print(
            f"{codec:6} {pairs:9,}  {shown[0]:>24} {shown[1]:>24}  "
            f"{ratio(timings['zip-fit'], timings['curation']):>18}  {peaks[0]:,.0f} / {peaks[1]:,.0f}"
        )
        order = [np.lexsort((np.arange(count), -np.round(scores, 12))) for scores in (theirs, ours)]
        top = max(1, count // 100)
        print(
            f"       largest difference of a score {np.abs(theirs - ours).max():.1e}; "
            f"same ranking: {'yes' if np.array_equal(*order) else 'NO'}; "
            f"top 1 % shared: {len(np.intersect1d(order[0][:top], order[1][:top]))} of {top}"
        )
        if codec == "lz4":
            peer_rate = pairs / timings["zip-fit"].median
    return peer_rate


def _rates(pairs: int, timing: Timing) -> str:
    low, high = pairs / max(timing.seconds), pairs / min(timing.seconds)
    return f"{pairs / timing.median / 1e3:,.0f} k/s ({low / 1e3:,.0f}–{high / 1e3:,.0f})"


def shortlist(options: argparse.Namespace, peer_rate: float) -> None:
    from curation import ZipFit

    pool = texts(POOL)
    if options.pool < len(pool):
        rows = np.sort(np.random.default_rng(0).permutation(len(pool))[: options.pool])
        pool = pool.take(pa.array(rows))
    k = len(pool) // 100
    print(f"\nShortlist, lz4, best {k:,} of {len(pool):,}; the ratio is to zip-fit's median rate above")
    print(f"{'targets':20} {'pairs':>11} {'exact':>9} {'shortlist':>26} {'rate':>24} {'to zip-fit':>11} recall")
    for names in (TARGETS, *(((name,) for name in TARGETS) if options.each else ())):
        targets = texts(names)
        pairs = len(pool) * len(targets)
        start = time.perf_counter()
        truth = ZipFit(targets=targets).select(pool, k)
        seconds = time.perf_counter() - start
        selector = ZipFit(targets=targets, mode="shortlist", shortlist_fraction=options.fraction)
        timing = timed(lambda s=selector: s.select(pool, k), repeats=options.repeats)
        recall = len(np.intersect1d(truth.indices, selector.select(pool, k).indices)) / k
        times = pairs / timing.median / peer_rate
        print(
            f"{'+'.join(names):20} {pairs:11,} {seconds:8.1f}s {timing!s:>26} {_rates(pairs, timing):>24} "
            f"{times:10.1f}× {recall:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has zip-fit (this one)")
    parser.add_argument("--codecs", nargs="+", default=["lz4", "gzip"], choices=list(LEVELS))
    parser.add_argument("--sources", type=int, default=4_000, help="sources with lz4; a quarter with others")
    parser.add_argument("--targets", type=int, default=82, help="targets, drawn from both target sets")
    parser.add_argument("--pool", type=int, default=10**9, help="sources of the shortlist (all)")
    parser.add_argument("--fraction", type=float, default=0.03, help="shortlist_fraction")
    parser.add_argument("--each", action="store_true", help="the shortlist for each target set alone, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["exact", "shortlist"], help="leave the other table out")
    parser.add_argument("--peer-rate", type=float, help="zip-fit's pairs per second, with --only shortlist")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(Path(options.work).read_text()), None)
        return
    if options.only != "shortlist":
        found = subprocess.run([options.peer_python, "-c", "import zip_fit.zipfit"], capture_output=True, text=True)
        if found.returncode:
            raise SystemExit(
                f"{options.peer_python} cannot import zip-fit: {found.stderr.strip().splitlines()[-1]}\n"
                "install it with `pip install zip-fit zstandard brotli` (it does not declare the last two),\n"
                "or name a Python that has it with --peer-python, or run --only shortlist"
            )
        rate = exact(options)
    else:
        rate = options.peer_rate or float("nan")
    if options.only != "exact":
        shortlist(options, rate)


if __name__ == "__main__":
    main()
