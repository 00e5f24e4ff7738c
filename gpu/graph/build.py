"""Undirected sparse graphs from windows of ranks: on the host, or on the GPU where there is one with room.

O(N·m·log m) time; :mod:`curation.gpu.graph.cpu` and :mod:`curation.gpu.graph.tensor` say how, and what memory it takes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.graph import cpu, tensor
from curation.gpu.graph.tensor import EDGES as EDGES
from curation.gpu.graph.tensor import Edges as Edges

Int64 = npt.NDArray[np.int64]

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
        within, total = cpu.weight_inside(self.starts, self.neighbours, self.weights, np.asarray(clusters, np.int64))
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
    on_device = _on_device(neighbours)
    if on_device is not None:
        return Graph(*(part.cpu().numpy() for part in tensor.build_csr(on_device, edges)))
    rows = np.asarray(neighbours)
    if rows.ndim != 2:
        raise ValueError(f"neighbours must have shape [N, m], not {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"neighbours must be integers, not {rows.dtype}")
    count = len(rows)
    if rows.size and (int(rows.min()) < -1 or int(rows.max()) >= count):
        raise ValueError(f"neighbours must be rows 0..{count - 1}, or -1 for none")
    return Graph(*cpu.build_csr(rows, edges))


def _on_device(neighbours: Any) -> torch.Tensor | None:
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
