"""Graphs from ranks of neighbours. Loaded on first use: tensor operations run where numba is not installed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.gpu.graph.build import EDGES as EDGES
    from curation.gpu.graph.build import Edges as Edges
    from curation.gpu.graph.build import Graph as Graph
    from curation.gpu.graph.build import build_graph as build_graph

__all__ = ["EDGES", "Edges", "Graph", "build_graph"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from curation.gpu.graph import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
