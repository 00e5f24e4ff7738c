"""From a window of ranks to an undirected sparse graph, in O(N·m·log m) time and no sort of the edges.

Each row of neighbours is sorted once; whether j also names i is then a binary search in row j. The whole
needs the rows, a flag for each of their entries and the result: 10^6 rows of 100 stay below 2 GiB.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.graph.tensor import build_csr
from curation.gpu.threads import by_rows

Int64 = npt.NDArray[np.int64]

EDGES = ("mutual", "either")
# Entries below which the way to the GPU and back costs what it saves.
WORTH_A_GPU = 1 << 22


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph in compressed rows; each edge stands in both of its ends' rows.

    Args:
        starts: int64[N + 1]; the neighbours of i are ``neighbours[starts[i]:starts[i + 1]]``.
        neighbours: int32[E] (int64 where N ≥ 2^31), rising within a row, without i itself.
        weights: uint8[E]: 2 where each of the two names the other, else 1.
    """

    starts: Int64
    neighbours: npt.NDArray[np.signedinteger[Any]]
    weights: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """N, the number of nodes."""
        return len(self.starts) - 1

    @property
    def edges(self) -> int:
        """The number of undirected edges."""
        return len(self.neighbours) // 2

    def inside(self, clusters: Int64) -> float:
        """Share of the edges' weight that joins rows of one cluster; 0.0 for a graph without edges.

        Args:
            clusters: int64[N].
        """
        if len(clusters) != len(self):
            raise ValueError(f"clusters has {len(clusters)} rows, but the graph has {len(self)} nodes")
        within, total = _inside(self.starts, self.neighbours, self.weights, np.asarray(clusters, np.int64))
        return float(within / total) if total else 0.0

    def to_networkx(self) -> Any:
        """A ``networkx.Graph`` with nodes 0..N-1 and ``weight`` on its edges: for looking at small graphs."""
        import networkx

        graph = networkx.Graph()
        graph.add_nodes_from(range(len(self)))
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        once = rows < self.neighbours
        columns = (rows[once], self.neighbours[once], self.weights[once])
        graph.add_weighted_edges_from(zip(*(column.tolist() for column in columns), strict=True))
        return graph


def build_graph(neighbours: Any, edges: str = "mutual") -> Graph:
    """Join i and j where each names the other (``"mutual"``) or where one does (``"either"``).

    Args:
        neighbours: int[N, m], the rows that each row names; -1 for none. A row's naming itself, or
            another twice, counts for nothing. A torch tensor is worked on where it is
            (:mod:`curation.gpu.graph.tensor`), and a large array on the GPU, where there is one with room.
        edges: B3's text (section 3) joins rows where either names the other; its script where both do.

    Returns:
        Graph: N nodes; ties and order are by index, so that equal input gives equal arrays.

    Raises:
        ValueError: shape or ``edges`` is not allowed, or a neighbour is outside 0..N-1.
        TypeError: neighbours are not integers.
    """
    if edges not in EDGES:
        raise ValueError(f"edges must be one of {', '.join(EDGES)}, not {edges!r}")
    tensor = _on_gpu(neighbours)
    if tensor is not None:
        starts, columns, weights = (part.cpu().numpy() for part in build_csr(tensor, edges))  # type: ignore[arg-type]
        return Graph(starts, columns, weights)
    rows = np.asarray(neighbours)
    if rows.ndim != 2:
        raise ValueError(f"neighbours must have shape [N, m], not {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"neighbours must be integers, not {rows.dtype}")
    count = len(rows)
    if rows.size and (int(rows.min()) < -1 or int(rows.max()) >= count):
        raise ValueError(f"neighbours must be rows 0..{count - 1}, or -1 for none")
    ordered = np.sort(rows.astype(np.int32 if count < 2**31 else np.int64), axis=1)
    # For each entry: 0 is none, 1 one way, 2 both ways.
    kinds = np.zeros(ordered.shape, np.uint8)
    by_rows(_classify, count, ordered, kinds)
    own, foreign = np.zeros(count, np.int64), np.zeros(count, np.int64)
    _count(ordered, kinds, edges == "either", own, foreign)
    starts = np.append(0, np.cumsum(own + foreign)).astype(np.int64)
    columns = np.empty_like(ordered, shape=int(starts[-1]))
    weights = np.empty(len(columns), np.uint8)
    _fill(ordered, kinds, edges == "either", starts[:-1].copy(), starts[:-1] + own, columns, weights)
    if edges == "either":
        by_rows(_merge, count, starts, own, columns, weights)
    return Graph(starts, columns, weights)


def _on_gpu(neighbours: Any) -> torch.Tensor | None:
    """The rows as a tensor, where they are one or the GPU will be faster; None for the compiled path."""
    if isinstance(neighbours, torch.Tensor):
        return neighbours
    rows = np.asarray(neighbours)
    if rows.size < WORTH_A_GPU or not np.issubdtype(rows.dtype, np.signedinteger) or not torch.cuda.is_available():
        return None
    if 120 * rows.size >= torch.cuda.mem_get_info()[0]:
        return None
    # Of a map that is read only a copy: torch warns of those.
    return torch.from_numpy(np.require(rows, requirements="W")).cuda()


@numba.njit(cache=True, nogil=True)
def _classify(begin, end, rows, kinds):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        for place in range(rows.shape[1]):
            other = rows[row, place]
            if other < 0 or other == row or (place > 0 and rows[row, place - 1] == other):
                continue
            low, high = 0, rows.shape[1]
            while low < high:
                middle = (low + high) // 2
                if rows[other, middle] < row:
                    low = middle + 1
                else:
                    high = middle
            kinds[row, place] = 2 if low < rows.shape[1] and rows[other, low] == row else 1


@numba.njit(cache=True, nogil=True)
def _count(rows, kinds, either, own, foreign):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        for place in range(rows.shape[1]):
            if kinds[row, place] == 2:
                own[row] += 1
            elif either and kinds[row, place] == 1:
                own[row] += 1
                foreign[rows[row, place]] += 1


@numba.njit(cache=True, nogil=True)
def _fill(rows, kinds, either, heads, tails, columns, weights):  # type: ignore[no-untyped-def]
    # What a row names comes first, then what names it alone; each part rises.
    for row in range(len(rows)):
        for place in range(rows.shape[1]):
            kind, other = kinds[row, place], rows[row, place]
            if kind == 2 or (either and kind == 1):
                columns[heads[row]] = other
                weights[heads[row]] = kind
                heads[row] += 1
                if kind == 1:
                    columns[tails[other]] = row
                    weights[tails[other]] = 1
                    tails[other] += 1


@numba.njit(cache=True, nogil=True)
def _merge(begin, end, starts, own, columns, weights):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        first, stop = starts[row], starts[row + 1]
        mine, weight = columns[first:stop].copy(), weights[first:stop].copy()
        left, right = 0, own[row]
        for place in range(first, stop):
            if right == stop - first or (left < own[row] and mine[left] < mine[right]):
                columns[place], weights[place] = mine[left], weight[left]
                left += 1
            else:
                columns[place], weights[place] = mine[right], weight[right]
                right += 1


@numba.njit(cache=True, nogil=True)
def _inside(starts, columns, weights, clusters):  # type: ignore[no-untyped-def]
    within, total = 0, 0
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            total += weights[place]
            if clusters[columns[place]] == clusters[row]:
                within += weights[place]
    return within, total
