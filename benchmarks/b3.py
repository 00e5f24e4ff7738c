"""B3's parts: time and quality of partitioners, graph building, the search's share, and hardness against random.

    python -m benchmarks.b3                                  # everything but 10^6 nodes
    python -m benchmarks.b3 --only partition --nodes 10000 100000 1000000
    python -m benchmarks.b3 --only hardness --hard-rows 0 --pairs tldr
    python -m benchmarks.b3_training                         # what the batches teach

Embeddings are made here (topics within fields, with noise, unit length), so that sizes can be chosen; hardness
is also measured on all-MiniLM embeddings of real pairs where ``--pairs`` names them.
"""

import argparse
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from benchmarks.common import Timing, data_dir, ratio
from curation.gpu.graph import EDGES, Graph, build_graph
from curation.gpu.knn import knn
from curation.selectors.b3 import B3, RankWindow, rank_window, text_ids
from curation.selectors.b3.batches import regroup
from curation.selectors.b3.conflicts import conflict_columns
from curation.selectors.b3.partition import LOUVAIN_LIMIT, PARTITIONERS, exact_sizes, partition
from curation.selectors.b3.quality import plan_quality, random_plan

Float32 = npt.NDArray[np.float32]

# Above this many nodes graphs come from a line, not from a search.
MADE = 200_000
METHODS = (
    ("METIS (pymetis)", "metis", 1),
    ("KaMinPar, 1 thread", "kaminpar", 1),
    ("KaMinPar, 2 threads", "kaminpar", 2),
)


def embeddings(count: int, width: int, seed: int = 0) -> tuple[Float32, Float32]:
    """Queries and positives of unit length: fields of about 2,000 rows, topics of about 100, and noise."""
    rng = np.random.default_rng(seed)
    field = rng.integers(0, max(1, count // 2000), count)
    topic = field * 20 + rng.integers(0, 20, count)
    sides = []
    base = rng.standard_normal((int(field.max()) + 1, width), np.float32)[field]
    base += 0.8 * rng.standard_normal((int(topic.max()) + 1, width), np.float32)[topic]
    base += 0.8 * rng.standard_normal((count, width), np.float32)
    for _ in range(2):
        side = base + 0.4 * rng.standard_normal((count, width), np.float32)
        sides.append(side / np.linalg.norm(side, axis=1, keepdims=True))
    return sides[0], sides[1]


def ring_ranks(count: int, ranks: int, seed: int = 0) -> npt.NDArray[np.int32]:
    """int32[N, ranks]: rows near each other on a line, under random names; half of them mutual or so."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(count).astype(np.int32)
    out = np.empty((count, ranks), np.int32)
    for start in range(0, count, 100_000):
        rows = np.arange(start, min(count, start + 100_000))
        steps = rng.integers(1, ranks + 50, (len(rows), ranks)) * rng.choice(np.array([-1, 1]), (len(rows), ranks))
        out[names[rows]] = names[(rows[:, None] + steps) % count]
    return out


def window_of(count: int, width: int) -> npt.NDArray[np.int32]:
    """Ranks 30 to 130 of made embeddings."""
    queries, positives = embeddings(count, width)
    found = knn(queries, positives, count=100, offset=30, exclude=np.arange(count))
    return found.indices.astype(np.int32)


def partitioners(nodes: list[int], kinds: list[str], size: int, repeats: int, louvain: int) -> None:
    print(f"\nPartition: ranks 30 to 130 of each row, communities of {size}; METIS is pymetis in the same run.")
    print("Seconds are of the clock, CPU those of all threads. METIS is timed bare, ours with its file and the repair")
    print("of sizes; the methods take turns. Inside: share of the edges within communities.")
    small = build_graph(ring_ranks(1000, 20))
    for _, method, threads in METHODS:
        partition(small, cluster_size=size, method=method, threads=threads)
    print(
        f"\n{'nodes':>9} {'edges':>7} {'edge count':>11} {'method':20} {'seconds':>26} {'CPU':>7} "
        f"{'METIS / it':>19} {'sizes':>7} {'inside':>7}"
    )
    for count in nodes:
        ranks = window_of(count, 32) if count <= MADE else ring_ranks(count, 100)
        for kind in kinds:
            graph = build_graph(ranks, kind)
            compare(graph, kind, size, repeats if count <= MADE else 1)
            if count <= min(louvain, LOUVAIN_LIMIT):
                run = Run.of(graph, "louvain", 1, size)
                line(graph, kind, "Louvain, made even", Timing((run.seconds,)), run.cpu, None, [run.labels])
            else:
                how = f": --louvain {count} has it" if count <= LOUVAIN_LIMIT else f", {LOUVAIN_LIMIT:,} nodes at most"
                print(f"{count:>9,} {kind:>7} Louvain left out, as networkx holds Python objects for every edge{how}")
    if 1_000_000 not in nodes:
        print("1,000,000 nodes left out: METIS alone takes many minutes. --nodes 10000 100000 1000000 has them, with")
        print(f"one run of each. Above {MADE:,} nodes neighbours come from a line, as a search would take hours.")


@dataclass(frozen=True)
class Run:
    """One call of a partitioner: its labels, and what it took."""

    labels: npt.NDArray[np.int64]
    seconds: float
    cpu: float

    @classmethod
    def of(cls, graph: Graph, method: str, threads: int, size: int) -> "Run":
        parts = -(-len(graph) // size)
        clock, cpu = time.perf_counter(), time.process_time()
        if method == "metis":
            labels = PARTITIONERS["metis"](graph, parts, size, 1, 0)
        else:
            labels = partition(graph, cluster_size=size, method=method, threads=threads)
        return cls(labels, time.perf_counter() - clock, time.process_time() - cpu)


def compare(graph: Graph, kind: str, size: int, repeats: int) -> None:
    """Time METIS and KaMinPar in turns, and print them side by side."""
    rounds = [[Run.of(graph, method, threads, size) for _, method, threads in METHODS] for _ in range(repeats)]
    reference: Timing | None = None
    for (label, method, _), runs in zip(METHODS, zip(*rounds, strict=True), strict=True):
        took = Timing(tuple(run.seconds for run in runs))
        cpu = statistics.median(run.cpu for run in runs)
        line(graph, kind, label, took, cpu, reference, [run.labels for run in runs])
        if method == "metis":
            reference = took
            even = exact_sizes(graph, runs[-1].labels, size)
            print(f"{'':30}{'made even, not timed':76} {span(even):>7} {graph.inside(even):>7.3f}")


def line(
    graph: Graph, kind: str, label: str, took: Timing, cpu: float, reference: Timing | None,
    labels: list[npt.NDArray[np.int64]],
) -> None:  # fmt: skip
    against = "" if reference is None else ratio(reference, took)
    alike = all(np.array_equal(labels[0], each) for each in labels)
    same = "" if len(labels) == 1 else " equal" if alike else " differs"
    print(
        f"{len(graph):>9,} {kind:>7} {graph.edges:>11,} {label:20} {took!s:>26} {cpu:>7.2f} {against:>19} "
        f"{span(labels[-1]):>7} {graph.inside(labels[-1]):>7.3f}{same}",
        flush=True,
    )


def span(labels: npt.NDArray[np.int64]) -> str:
    """The smallest and the largest community."""
    sizes = np.bincount(labels)
    return f"{sizes.min()}–{sizes.max()}"


def graphs(count: int, ranks: int) -> None:
    rows = ring_ranks(count, ranks)
    print(f"\nGraph from ranks int32[{count:,}, {ranks}]")
    build_graph(rows[:1000] % 1000, "either")
    for edges in ("mutual", "either"):
        start = time.perf_counter()
        graph = build_graph(rows, edges)
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{edges:>7}: {took:.1f} s, {graph.edges:,} edges, peak {peak:.2f} GiB of the whole process")
        del graph


def end_to_end(count: int, width: int) -> None:
    queries, positives = embeddings(count, width)
    # A text in four has a twin somewhere.
    texts = [f"text {number}" for number in np.random.default_rng(1).integers(0, 2 * count, count)]
    method = B3(batch_size=64, cluster_size=32, negatives=5)
    steps: list[tuple[str, float]] = []

    def step(name: str, run: Any) -> Any:
        start = time.perf_counter()
        out = run()
        steps.append((name, time.perf_counter() - start))
        return out

    def whole(size: int) -> str:
        left, right = queries[:size], positives[:size]
        steps.clear()
        apart = step("duplicates", lambda: conflict_columns(text_ids(texts[:size]), size))
        ranking = step("search, exact", lambda: rank_window(left, right, apart=apart))
        found = step("graph and partition", lambda: method.communities(ranking, apart=apart))
        plan = step("batches, with 5 negatives a row", lambda: method.batches(found))
        for name, each in (("quality", plan), ("quality of random batches", random_plan(plan))):
            step(name, lambda each=each: plan_quality(each, left, right, window=ranking.window, near=ranking.near))
        return str(ranking.metadata["engine"])

    whole(2000)
    engine = whole(count)
    total = sum(seconds for _, seconds in steps)
    print(f"\nEnd to end at {count:,} × {width}, engine {engine}: {total:.1f} s")
    for name, seconds in steps:
        print(f"{name:32} {seconds:8.2f} s {seconds / total:6.1%}")


def hardness(name: str, queries: Any, positives: Any, kinds: list[str], sizes: list[int]) -> None:
    ranking: RankWindow = rank_window(queries, positives)
    print(f"\nBatches of 64, {name}: {len(queries):,} rows, ranks 30 to 130")
    print(
        f"{'edges':>7} {'edge count':>11} {'K':>4} {'partition':>10} {'hard / row':>10} {'random':>8} {'ratio':>7} "
        f"{'likely false':>13} {'random':>8} {'similarity':>11} {'random':>8} {'inside':>7}"
    )
    for edges in kinds:
        graph = build_graph(ranking.window, edges)
        for size in sizes:
            start = time.perf_counter()
            clusters = partition(graph, cluster_size=size)
            took = time.perf_counter() - start
            plan = regroup(clusters, batch_size=64, cluster_size=size).plan
            ours = plan_quality(plan, queries, positives, window=ranking.window, near=ranking.near, graph=graph)
            other = plan_quality(random_plan(plan), queries, positives, window=ranking.window, near=ranking.near)
            print(
                f"{edges:>7} {graph.edges:>11,} {size:>4} {took:>8.1f} s {ours.window_neighbours:>10.2f} "
                f"{other.window_neighbours:>8.3f} {ours.window_neighbours / other.window_neighbours:>6.1f}× "
                f"{ours.false_negatives:>13.4f} {other.false_negatives:>8.4f} {ours.similarity:>11.3f} "
                f"{other.similarity:>8.3f} {ours.inside_edges:>7.3f}",
                flush=True,
            )


def pairs(name: str, cache: Path) -> tuple[Float32, Float32]:
    """all-MiniLM-L6-v2 embeddings of a data set of pairs/, from the cache that the training benchmark fills too."""
    from benchmarks.b3_training import embed

    cache.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(data_dir() / "pairs" / f"{name}.parquet", columns=["query", "positive"])
    both = embed(table["query"].to_pylist() + table["positive"].to_pylist(), cache, name)
    return both[: len(table)], both[len(table) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("partition", "graph", "end", "hardness")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--nodes", nargs="*", type=int, default=[10_000, 100_000], help="sizes to partition")
    parser.add_argument("--edges", nargs="*", choices=EDGES, default=["mutual"], help="graphs to partition")
    parser.add_argument("--cluster-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--louvain", type=int, default=LOUVAIN_LIMIT, help="most nodes for Louvain")
    parser.add_argument("--graph-rows", type=int, default=1_000_000)
    parser.add_argument("--end-rows", type=int, default=100_000)
    parser.add_argument("--end-width", type=int, default=384)
    parser.add_argument("--hard-rows", type=int, default=20_000, help="made embeddings to batch; 0 for none")
    parser.add_argument("--hard-edges", nargs="*", choices=EDGES, default=list(EDGES), help="graphs to batch")
    parser.add_argument("--pairs", nargs="*", default=[], help="data sets of pairs/ to batch, such as tldr")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/b3cache"), help="of the embeddings of pairs")
    options = parser.parse_args()
    if "partition" in options.only:
        partitioners(options.nodes, options.edges, options.cluster_size, options.repeats, options.louvain)
    if "graph" in options.only:
        graphs(options.graph_rows, 100)
    if "hardness" in options.only:
        sizes = [8, 16, 32, 64]
        if options.hard_rows:
            hardness("made embeddings", *embeddings(options.hard_rows, 64), options.hard_edges, sizes)
        for name in options.pairs:
            hardness(name, *pairs(name, options.cache), options.hard_edges, sizes)
    if "end" in options.only:
        end_to_end(options.end_rows, options.end_width)


if __name__ == "__main__":
    main()
