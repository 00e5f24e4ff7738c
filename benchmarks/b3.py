"""B3's parts: time and quality of partitioners, graph building, the search's share, and hardness against random.

    python -m benchmarks.b3                                  # everything but 10^6 nodes
    python -m benchmarks.b3 --only partition --nodes 1000000
    python -m benchmarks.b3_training                         # what the batches teach

Embeddings are made here (topics within fields, with noise, unit length), so that sizes can be chosen; hardness
is also measured on all-MiniLM embeddings of real pairs where ``--embeddings file.npz`` (query, positive) is given.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Timing, ratio, timed
from curation.gpu.knn import knn
from curation.selectors._graph import Graph, build_graph
from curation.selectors._partition import LOUVAIN_LIMIT, PARTITIONERS, exact_sizes, partition
from curation.selectors._regroup import regroup
from curation.selectors.b3 import B3, RankWindow, rank_window
from curation.selectors.quality import plan_quality, random_plan

Float32 = npt.NDArray[np.float32]


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


def partitioners(nodes: list[int], size: int, repeats: int, louvain: int) -> None:
    print(f"\nPartition: ranks 30 to 130 of each row, communities of {size}; METIS is pymetis in the same run")
    print(
        f"{'nodes':>9} {'edges':>7} {'edge count':>11} {'method':22} {'time':>26} {'METIS / it':>20} "
        f"{'sizes':>10} {'inside':>7}"
    )
    for count in nodes:
        ranks = window_of(count, 32) if count <= 200_000 else ring_ranks(count, 100)
        for edges in ("mutual", "either"):
            graph = build_graph(ranks, edges)
            methods: list[tuple[str, str, int]] = [
                ("METIS", "metis", 1), ("KaMinPar, 1 thread", "kaminpar", 1),
                ("KaMinPar, 2 threads", "kaminpar", 2),
            ]  # fmt: skip
            if count <= min(louvain, LOUVAIN_LIMIT):
                methods.append(("Louvain", "louvain", 1))
            reference: Timing | None = None
            for label, method, threads in methods:
                reference = row(graph, edges, label, method, threads, size, repeats, reference)


def row(
    graph: Graph, edges: str, label: str, method: str, threads: int, size: int, repeats: int,
    reference: Timing | None,
) -> Timing:  # fmt: skip
    """Time one partitioner and print it beside METIS; returns METIS's time."""
    kept: list[Any] = []
    slow = method == "louvain"
    parts = -(-len(graph) // size)

    def run() -> None:
        # METIS is timed bare, ours with its file and the repair of sizes.
        bare = PARTITIONERS["metis"](graph, parts, size, 1, 0) if method == "metis" else None
        kept.append(partition(graph, cluster_size=size, method=method, threads=threads) if bare is None else bare)

    took = timed(run, repeats=1 if slow else repeats, warmup=0 if slow else 1)
    if method == "metis":
        print(
            f"{'':27} METIS's own blocks: {np.bincount(kept[-1]).min()}–{np.bincount(kept[-1]).max()}, "
            f"inside {graph.inside(kept[-1]):.3f}; made even:"
        )
        kept = [exact_sizes(graph, each, size) for each in kept]
    sizes = np.bincount(kept[-1])
    against = "" if reference is None else (ratio(reference, took) if not slow else
                                            f"{reference.median / took.median:.2f}×")  # fmt: skip
    span = f"{sizes.min()}–{sizes.max()}"
    same = all(np.array_equal(kept[0], each) for each in kept)
    print(
        f"{len(graph):>9,} {edges:>7} {graph.edges:>11,} {label:22} {took!s:>26} {against:>20} {span:>10} "
        f"{graph.inside(kept[-1]):>7.3f} {'equal every time' if same else 'differs'}",
        flush=True,
    )
    return reference or took


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
    method = B3(batch_size=1024, cluster_size=32, negatives=5)
    method.plan(queries[:2000], positives[:2000])
    steps: list[tuple[str, float]] = []

    def step(name: str, run: Any) -> Any:
        start = time.perf_counter()
        out = run()
        steps.append((name, time.perf_counter() - start))
        return out

    ranking = step("search, exact", lambda: rank_window(queries, positives))
    graph = step("graph", lambda: build_graph(ranking.window))
    clusters = step("partition", lambda: partition(graph, cluster_size=32))
    step("an epoch's batches", lambda: regroup(clusters, batch_size=1024, cluster_size=32))
    total = sum(seconds for _, seconds in steps)
    print(f"\nEnd to end at {count:,} × {width}, engine {ranking.metadata['engine']}: {total:.1f} s")
    for name, seconds in steps:
        print(f"{name:22} {seconds:8.2f} s {seconds / total:6.1%}")


def hardness(name: str, queries: Any, positives: Any, sizes: list[int]) -> None:
    ranking: RankWindow = rank_window(queries, positives)
    print(f"\nBatches of 64, {name}: {len(queries):,} rows, ranks 30 to 130")
    print(
        f"{'edges':>7} {'K':>4} {'hard / row':>10} {'random':>8} {'ratio':>7} {'likely false':>13} "
        f"{'random':>8} {'similarity':>11} {'random':>8} {'inside':>7}"
    )
    for edges in ("mutual", "either"):
        graph = build_graph(ranking.window, edges)
        for size in sizes:
            plan = regroup(partition(graph, cluster_size=size), batch_size=64, cluster_size=size)
            ours = plan_quality(plan, queries, positives, window=ranking.window, near=ranking.near, graph=graph)
            other = plan_quality(random_plan(plan), queries, positives, window=ranking.window, near=ranking.near)
            print(
                f"{edges:>7} {size:>4} {ours.window_neighbours:>10.2f} {other.window_neighbours:>8.3f} "
                f"{ours.window_neighbours / other.window_neighbours:>6.1f}× {ours.false_negatives:>13.4f} "
                f"{other.false_negatives:>8.4f} {ours.similarity:>11.3f} {other.similarity:>8.3f} "
                f"{ours.inside_edges:>7.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("partition", "graph", "end", "hardness")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--nodes", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--cluster-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--louvain", type=int, default=10_000, help="most nodes for Louvain (minutes)")
    parser.add_argument("--graph-rows", type=int, default=1_000_000)
    parser.add_argument("--end-rows", type=int, default=100_000)
    parser.add_argument("--end-width", type=int, default=384)
    parser.add_argument("--hard-rows", type=int, default=20_000)
    parser.add_argument("--embeddings", type=Path)
    options = parser.parse_args()
    if "partition" in options.only:
        partitioners(options.nodes, options.cluster_size, options.repeats, options.louvain)
    if "graph" in options.only:
        graphs(options.graph_rows, 100)
    if "hardness" in options.only:
        sizes = [8, 16, 32, 64]
        hardness("made embeddings", *embeddings(options.hard_rows, 64), sizes)
        if options.embeddings:
            sides = np.load(options.embeddings)
            hardness(options.embeddings.stem, sides["query"], sides["positive"], sizes)
    if "end" in options.only:
        end_to_end(options.end_rows, options.end_width)


if __name__ == "__main__":
    main()
