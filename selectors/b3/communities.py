"""Communities, from ranks: the graph, its cut, and rows that must not meet kept apart (B3, section 3, 3 and 4).

All that is the same in every epoch. O(N·m·log m) time and the partitioner's; memory some 20 bytes an edge. Where a
graph is too large, :func:`join_cells` puts together what was cut cell by cell.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation.gpu.graph import Graph, build_graph
from curation.selectors.b3.conflicts import separate_clusters
from curation.selectors.b3.partition import partition
from curation.selectors.b3.ranking import RankWindow, by_dataset
from curation.selectors.b3.repulsion import repel

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]

# What comes out another way at every call: its threads put rows into the index in the order that they get to them.
UNSTABLE_ENGINES = ("faiss-hnsw",)


@dataclass(frozen=True, eq=False, kw_only=True)
class Communities:
    """What :meth:`B3.mine` finds, and every epoch is drawn from.

    Args:
        clusters: int64[N], community of each row.
        ranking: the rank window.
        graph: the undirected graph of N nodes; without edges where it was cut in cells.
        apart: int64[c, N] ids of rows that must not meet, or None.
        datasets: int64[N], or None.
        metadata: engine, partitioner and sizes, as strings.
    """

    clusters: Int64
    ranking: RankWindow
    graph: Graph
    apart: Int64 | None
    datasets: Int64 | None
    metadata: Mapping[str, str]


def find_communities(
    ranking: RankWindow,
    *,
    cluster_size: int,
    edges: str = "mutual",
    partitioner: str = "kaminpar",
    threads: int = 1,
    repulsion: float = 0.0,
    apart: Int64 | None = None,
    datasets: Int64 | None = None,
    seed: int = 0,
) -> Communities:
    """Graph and partition.

    Args:
        ranking: N rows.
        cluster_size, edges, partitioner, threads, repulsion: as :class:`B3`'s.
        apart: int64[c, N], as :func:`conflict_columns` gives them.
        datasets: int64[N] ids 0..; no window leaves its own data set, and no community does.
        seed: of the partitioner.
    """
    graph = build_graph(ranking.window, edges)
    if graph.edges == 0:
        log.warning("no edges: the ranks leave nothing of %d rows; communities go by index", len(graph))
    clusters = np.empty(len(graph), np.int64)
    first = 0
    for rows in by_dataset(datasets, len(graph)):
        part = graph if datasets is None else _induced(graph, rows)
        clusters[rows] = first + partition(
            part, cluster_size=cluster_size, method=partitioner, threads=threads, seed=seed
        )
        first += -(-len(rows) // cluster_size)
    if repulsion:
        clusters = repel(clusters, ranking.near, graph, repulsion)
    if apart is not None:
        for rows in by_dataset(datasets, len(graph)):
            part = graph if datasets is None else _induced(graph, rows)
            clusters[rows] = separate_clusters(clusters[rows], apart[:, rows], part)
    return Communities(
        clusters=clusters, ranking=ranking, graph=graph, apart=apart, datasets=datasets,
        metadata=_metadata(ranking, partitioner, threads, first, graph.edges),
    )  # fmt: skip


def join_cells(
    ranking: RankWindow,
    cells: npt.NDArray[np.integer],
    parts: Sequence[Int64],
    *,
    edges: int,
    partitioner: str = "kaminpar",
    apart: Int64 | None = None,
    datasets: Int64 | None = None,
) -> Communities:
    """Communities of rows that were cut one cell after the other, on one thread each.

    Args:
        ranking: N rows.
        cells: int[N], ids 0.. of cells.
        parts: for each cell, int64 communities 0.. of its rows, rising.
        edges: how many edges the cells hold together.
        partitioner, apart, datasets: as in :func:`find_communities`.
    """
    clusters = np.empty(len(cells), np.int64)
    first = 0
    for rows, part in zip(by_dataset(np.asarray(cells, np.int64), len(cells)), parts, strict=True):
        clusters[rows] = first + part
        first += int(part.max()) + 1
    empty = Graph(np.zeros(len(cells) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8))
    return Communities(
        clusters=clusters, ranking=ranking, graph=empty, apart=apart, datasets=datasets,
        metadata=_metadata(ranking, partitioner, 1, first, edges),
    )  # fmt: skip


def _metadata(ranking: RankWindow, partitioner: str, threads: int, communities: int, edges: int) -> dict[str, str]:
    engines = ranking.metadata.get("engine", "").split(", ")
    stable = (partitioner != "kaminpar" or threads == 1) and not set(engines) & set(UNSTABLE_ENGINES)
    return {
        **ranking.metadata,
        "partitioner": partitioner,
        "deterministic": str(stable).lower(),
        "communities": str(communities),
        "graph_edges": str(edges),
    }


def _induced(graph: Graph, rows: Int64) -> Graph:
    # Edges never leave a data set, so its rows only need new names.
    names = np.full(len(graph), -1, graph.neighbours.dtype)
    names[rows] = np.arange(len(rows))
    degrees = np.diff(graph.starts)[rows]
    starts = np.append(0, np.cumsum(degrees)).astype(np.int64)
    edges = np.arange(starts[-1]) + np.repeat(graph.starts[rows] - starts[:-1], degrees)
    return Graph(starts, names[graph.neighbours[edges]], graph.weights[edges])
