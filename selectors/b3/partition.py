"""Partition of a graph into communities of exactly K rows (one shorter where K does not divide N).

KaMinPar is the default: several times faster than METIS, and it keeps more edges inside. On one thread and
with a seed it is deterministic; on more it is not. METIS (``pymetis``, an extra) is the paper's. Louvain
(networkx) is for comparison on small graphs. Their blocks come out empty, short or long, so a last pass moves
as few rows as sizes demand, those that lose least. Time is the library's; memory some 20 bytes an edge.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.graph import Graph

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
Partitioner = Literal["kaminpar", "metis", "louvain"]

# networkx holds Python objects for every edge, and takes many minutes above this.
LOUVAIN_LIMIT = 100_000


def partition(graph: Graph, *, cluster_size: int, method: str = "kaminpar", threads: int = 1, seed: int = 0) -> Int64:
    """Community of every node: ``ceil(N / cluster_size)`` of them, all of ``cluster_size`` save one.

    B3 section 3 (METIS there). Where K does not divide N exactly one community is short, and a graph no
    larger than K is one community.

    Args:
        graph: N nodes.
        cluster_size: K, at least 1.
        method: a key of ``PARTITIONERS``.
        threads: KaMinPar's; more than one is faster and gives another result at every call.
        seed: of the partitioner.

    Returns:
        int64[N], ids 0..P-1.

    Raises:
        ValueError: an option is not allowed, or the graph is too large for Louvain.
        ModuleNotFoundError: METIS was asked for and pymetis is not installed.
    """
    if cluster_size < 1 or threads < 1:
        raise ValueError(f"cluster_size and threads must be at least 1, not {cluster_size} and {threads}")
    if method not in PARTITIONERS:
        raise ValueError(f"partitioner must be one of {', '.join(PARTITIONERS)}, not {method!r}")
    parts = -(-len(graph) // cluster_size)
    if parts <= 1:
        return np.zeros(len(graph), np.int64)
    if graph.edges == 0 or cluster_size == 1:
        return np.arange(len(graph), dtype=np.int64) // cluster_size
    raw = PARTITIONERS[method](graph, parts, cluster_size, threads, seed)
    log.info(
        "partition: %s, %d thread(s), %d nodes, %d edges, %d communities of %d",
        method, threads, len(graph), graph.edges, parts, cluster_size,
    )  # fmt: skip
    return exact_sizes(graph, raw, cluster_size)


def exact_sizes(graph: Graph, labels: npt.ArrayLike, cluster_size: int) -> Int64:
    """Even out communities: every id 0..P-1 gets ``cluster_size`` rows, save one where K does not divide N.

    Rows that have least weight inside leave what is too large; each then joins the community with room that
    it has most weight to, or the first with room. Ties break by index.

    Args:
        graph: N nodes.
        labels: int[N], ids of any range; -1 for a row without a community.
        cluster_size: K.

    Returns:
        int64[N]; P = ceil(N / K). Where there were more than P ids the largest stay.
    """
    labels = np.asarray(labels, np.int64)
    parts = -(-len(graph) // cluster_size)
    ids, dense = np.unique(labels, return_inverse=True)
    sizes = np.bincount(dense)
    sizes[ids < 0] = 0
    # The largest stay, by falling size and then by id, and keep their order; empty ids fill up to P.
    stay = np.sort(np.lexsort((ids, -sizes))[:parts])
    stay = stay[ids[stay] >= 0]
    rename = np.full(len(ids), -1, np.int64)
    rename[stay] = np.arange(len(stay))
    if len(stay) == parts and np.array_equal(ids[stay], np.arange(parts)):
        rename[stay] = ids[stay]
    out = rename[dense]
    room = np.full(parts, cluster_size, np.int64)
    held = np.bincount(out[out >= 0], minlength=parts)
    # The smallest community is the short one: filling it would move the most rows.
    room[np.argmin(held)] -= parts * cluster_size - len(graph)
    weight = _weight_inside(graph.starts, graph.neighbours, graph.weights, out)
    over = np.flatnonzero((out >= 0) & (held > room)[out])
    if len(over):
        order = over[np.lexsort((over, weight[over], out[over]))]
        group = out[order]
        first = np.searchsorted(group, group, "left")
        leaving = order[np.arange(len(order)) - first < (held - room)[group]]
        out[leaving] = -1
    room -= np.bincount(out[out >= 0], minlength=parts)
    log.info("partition: %d rows moved to even sizes", int(np.count_nonzero(out < 0)))
    _settle(graph.starts, graph.neighbours, graph.weights, out, room)
    return out


def _kaminpar(graph: Graph, parts: int, cluster_size: int, threads: int, seed: int) -> Int64:
    import kaminpar

    # Its Python module takes a graph only as a file: ParHIP, 64-bit offsets in bytes and 32-bit ids.
    if len(graph) >= 2**31:
        raise ValueError(f"KaMinPar takes fewer than 2^31 nodes, not {len(graph)}: split them into cells first")
    weighted = bool(len(graph.weights)) and int(graph.weights.min()) != int(graph.weights.max())
    version = (0 if weighted else 1) | 2 | 8 | 16 | 32
    base = 24 + 8 * len(graph.starts)
    with tempfile.TemporaryDirectory(dir=_memory_folder(base + 8 * len(graph.neighbours))) as folder:
        path = Path(folder, "graph.parhip")
        with path.open("wb") as sink:
            np.array([version, len(graph), len(graph.neighbours)], np.uint64).tofile(sink)
            (graph.starts.astype(np.uint64) * np.uint64(4) + np.uint64(base)).tofile(sink)
            graph.neighbours.astype(np.uint32, copy=False).tofile(sink)
            if weighted:
                graph.weights.astype(np.int32).tofile(sink)
        loaded = kaminpar.load_graph(str(path), kaminpar.GraphFileFormat.PARHIP)
    kaminpar.reseed(seed % 2**31)
    engine = kaminpar.KaMinPar(threads, kaminpar.context_by_name("largek-fast"))
    return np.array(engine.compute_partition(loaded, [cluster_size] * parts), np.int64)


def _metis(graph: Graph, parts: int, cluster_size: int, threads: int, seed: int) -> Int64:
    import pymetis

    adjacency = pymetis.CSRAdjacency(graph.starts, graph.neighbours.astype(np.int64))
    weighted = int(graph.weights.min()) != int(graph.weights.max())
    _, labels = pymetis.part_graph(
        parts,
        adjacency,
        eweights=graph.weights.astype(np.int64) if weighted else None,
        options=pymetis.Options(seed=seed % 2**31),
    )
    return np.array(labels, np.int64)


def _louvain(graph: Graph, parts: int, cluster_size: int, threads: int, seed: int) -> Int64:
    import networkx

    if len(graph) > LOUVAIN_LIMIT:
        raise ValueError(f"partitioner louvain is for up to {LOUVAIN_LIMIT} nodes, not {len(graph)}: take kaminpar")
    blocks = networkx.community.louvain_communities(graph.to_networkx(), seed=seed % 2**32)
    labels = np.empty(len(graph), np.int64)
    for label, members in enumerate(sorted(blocks, key=min)):
        labels[list(members)] = label
    return np.asarray(_grow(graph.starts, graph.neighbours, graph.weights, labels, cluster_size))


PARTITIONERS: dict[Partitioner, Callable[[Graph, int, int, int, int], Int64]] = {
    "kaminpar": _kaminpar,
    "metis": _metis,
    "louvain": _louvain,
}


def _memory_folder(size: int) -> str | None:
    # The file lives for a second: in memory where the system has a place for that and room in it.
    import shutil

    shared = Path("/dev/shm")
    try:
        roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2 * size
    except OSError:
        return None
    return str(shared) if roomy else None


@compiled(nogil=True)
def _weight_inside(starts: Any, columns: Any, weights: Any, labels: Any) -> Any:
    out = np.zeros(len(labels), np.int64)
    for row in range(len(labels)):
        for edge in range(starts[row], starts[row + 1]):
            if labels[columns[edge]] == labels[row]:
                out[row] += weights[edge]
    return out


@compiled(nogil=True)
def _settle(starts: Any, columns: Any, weights: Any, labels: Any, room: Any) -> None:
    gain = np.zeros(len(room), np.int64)
    for row in range(len(labels)):
        if labels[row] >= 0:
            continue
        best = -1
        for edge in range(starts[row], starts[row + 1]):
            part = labels[columns[edge]]
            if part >= 0 and room[part] > 0:
                gain[part] += weights[edge]
                if best < 0 or gain[part] > gain[best] or (gain[part] == gain[best] and part < best):
                    best = part
        for edge in range(starts[row], starts[row + 1]):
            part = labels[columns[edge]]
            if part >= 0:
                gain[part] = 0
        if best >= 0:
            labels[row] = best
            room[best] -= 1
    part = 0
    for row in range(len(labels)):
        if labels[row] < 0:
            while room[part] == 0:
                part += 1
            labels[row] = part
            room[part] -= 1


@compiled(nogil=True)
def _grow(starts: Any, columns: Any, weights: Any, labels: Any, size: Any) -> Any:
    # Chunks of `size` within each label: from the lowest free row, always the free neighbour tied most to it.
    out = np.full(len(labels), -1, np.int64)
    tie = np.zeros(len(labels), np.int64)
    chunk = 0
    for seed in range(len(labels)):
        if out[seed] >= 0:
            continue
        border = [seed]
        for _ in range(size):
            best = -1
            for row in border:
                if out[row] < 0 and (best < 0 or tie[row] > tie[best] or (tie[row] == tie[best] and row < best)):
                    best = row
            if best < 0:
                break
            out[best] = chunk
            for edge in range(starts[best], starts[best + 1]):
                other = columns[edge]
                if out[other] < 0 and labels[other] == labels[seed]:
                    if tie[other] == 0:
                        border.append(other)
                    tie[other] += weights[edge]
        for row in border:
            tie[row] = 0
        chunk += 1
    return out
