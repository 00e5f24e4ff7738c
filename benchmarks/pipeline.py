"""Rows per second and the driver's peak memory of whole runs: score, acquire, shards.

    python -m benchmarks.pipeline [--rows 100000 1000000]

Each size runs in a process of its own, on its own local Ray runtime, after a small run that is not measured. The
texts are runs of 400 characters from the functions of the installed Python standard library.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHARACTERS = 400


def make_corpus(path: Path, rows: int) -> None:
    """Write Parquet files of 250,000 rows: text (400 characters), quality."""
    from curation.recipe import StdlibSource
    from curation.sources import open_source

    source = open_source(StdlibSource(format="stdlib"))
    texts = [source.read(block, ["text"])[0]["text"].to_pylist() for block in source.blocks(16_384)]
    pool = "".join(text for block in texts for text in block if text)
    rng = np.random.default_rng(0)
    path.mkdir()
    for start in range(0, rows, 250_000):
        count = min(250_000, rows - start)
        at = rng.integers(0, len(pool) - CHARACTERS, count)
        table = pa.table(
            {"text": [pool[i : i + CHARACTERS] for i in at.tolist()], "quality": rng.gamma(2.0, size=count)}
        )
        pq.write_table(table, path / f"part-{start:09d}.parquet", row_group_size=50_000)


def child(folder: Path) -> None:
    """Run once on what ``folder`` holds; print seconds and this process's peak memory."""
    import ray

    from curation.pipelines.engine.ray import runtime
    from curation.pipelines.job import run
    from curation.recipe import Recipe

    def recipe(name: str) -> Recipe:
        return Recipe.model_validate(
            {
                "source": {"format": "parquet", "path": str(folder / name)},
                "steps": [
                    {"step": "score", "column": "quality"},
                    {"step": "acquire", "kind": "power", "fraction": 0.1},
                ],
            }
        )

    with runtime():
        run(recipe("warm"), folder / "warm-out")
        start = time.perf_counter()
        manifest = run(recipe("corpus"), folder / "out")
        seconds = time.perf_counter() - start
        assert ray.is_initialized()
    # Not ru_maxrss, which a process inherits from the one that started it, here with a whole corpus in its memory.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "steps": manifest.seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    results = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_corpus(folder / "warm", 1000)
            make_corpus(folder / "corpus", rows)
            command = [sys.executable, "-m", "benchmarks.pipeline", "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            results[rows] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'rows':>10} {'seconds':>9} {'rows/s':>9} {'driver peak':>12}   seconds by stage")
    for rows, result in results.items():
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["steps"].items())
        print(
            f"{rows:>10,} {result['seconds']:>9.1f} {rows / result['seconds']:>9,.0f} "
            f"{result['peak'] / 2**20:>8.0f} MiB   {stages}"
        )
    if len(results) > 1:
        low, high = min(results), max(results)
        growth = (results[high]["peak"] - results[low]["peak"]) / (high - low)
        print(f"driver memory grows by {growth:.1f} bytes a row from {low:,} to {high:,} rows")


if __name__ == "__main__":
    main()
