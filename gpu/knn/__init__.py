"""Nearest neighbours. Loaded on first use: the search on a device runs where numba and FAISS are not installed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.gpu.knn.search import APPROXIMATE as APPROXIMATE
    from curation.gpu.knn.search import ENGINES as ENGINES
    from curation.gpu.knn.search import METRICS as METRICS
    from curation.gpu.knn.search import PRECISIONS as PRECISIONS
    from curation.gpu.knn.search import Engine as Engine
    from curation.gpu.knn.search import Metric as Metric
    from curation.gpu.knn.search import Neighbours as Neighbours
    from curation.gpu.knn.search import Precision as Precision
    from curation.gpu.knn.search import choose as choose
    from curation.gpu.knn.search import knn as knn

__all__ = [
    "APPROXIMATE",
    "ENGINES",
    "METRICS",
    "PRECISIONS",
    "Engine",
    "Metric",
    "Neighbours",
    "Precision",
    "choose",
    "knn",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from curation.gpu.knn import search

        return getattr(search, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
