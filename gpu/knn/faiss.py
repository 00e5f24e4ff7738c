"""FAISS indexes, built and searched by blocks. ``faiss`` is optional, so it is imported where it is used."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from curation.gpu.knn.matrix import Float32, Int64, Matrix

ON_GPU = ("faiss-gpu", "faiss-gpu-ivf", "faiss-cagra")
# GPU indexes keep their running best in registers, which ends here.
GPU_LARGEST_K = 2048


def installed() -> bool:
    """Whether ``faiss`` (of faiss-cpu or faiss-gpu) can be imported."""
    return find_spec("faiss") is not None


def gpus() -> int:
    """How many GPUs the installed FAISS sees: 0 for faiss-cpu."""
    if not installed():
        return 0
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def build(
    engine: str, database: Matrix, *, l2: bool, block: int, seed: int, options: Mapping[str, int]
) -> tuple[Callable[[Float32, int], tuple[Int64, Float32]], dict[str, str]]:
    """Index the database; returns a search of (queries, k) -> (ids, scores, larger is nearer), and settings.

    The index holds a float32 copy of the database (on the GPU for engines in ``ON_GPU``).

    Raises:
        ModuleNotFoundError: FAISS is not installed.
        ValueError: the engine is CAGRA, and this build of FAISS is without it.
    """
    import faiss

    gpu: Any = faiss  # faiss-cpu, which types are checked with, lacks some names
    metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    count, width = len(database), database.width
    settings: dict[str, int] = {}
    if engine == "faiss-cagra":
        return _cagra(database, l2=l2, options=options)
    if engine in ("faiss-ivf", "faiss-gpu-ivf"):
        # FAISS advises 4 to 16 roots of N lists. A window of ranks 30 to 130 reaches into many: on pairs of
        # 16,000 commands a sixteenth of them found 0.62 of the window, a third 0.90.
        lists = min(options.get("nlist") or round(4 * count**0.5), max(1, count // 39))
        settings = {"nlist": lists, "nprobe": min(lists, options.get("nprobe") or max(32, lists // 4))}
        if engine == "faiss-gpu-ivf":
            index: Any = gpu.GpuIndexIVFFlat(faiss.StandardGpuResources(), width, lists, metric)
            settings["nprobe"] = min(settings["nprobe"], GPU_LARGEST_K)
        else:
            index = faiss.index_factory(width, f"IVF{lists},Flat", metric)
        index.cp.seed = seed % 2**31
        sample = np.sort(np.random.default_rng((seed, 1)).choice(count, size=min(count, 64 * lists), replace=False))
        index.train(database.take(sample))
        index.nprobe = settings["nprobe"]
    elif engine == "faiss-hnsw":
        settings = {"links": options.get("links") or 32, "ef_search": options.get("ef_search") or 256}
        index = faiss.IndexHNSWFlat(width, settings["links"], metric)
        index.hnsw.efConstruction = max(80, 2 * settings["links"])
    else:
        index = faiss.IndexFlatL2(width) if l2 else faiss.IndexFlatIP(width)
        if engine == "faiss-gpu":
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for start in range(0, count, block):
        index.add(database.read(start, start + block))

    def search(queries: Float32, k: int) -> tuple[Int64, Float32]:
        if engine == "faiss-hnsw":
            index.hnsw.efSearch = max(settings["ef_search"], 2 * k)
        scores, ids = index.search(queries, min(k, count))
        return ids, np.where(ids < 0, -np.inf, -scores if l2 else scores).astype(np.float32)

    return search, {name: str(value) for name, value in settings.items()}


def _cagra(
    database: Matrix, *, l2: bool, options: Mapping[str, int]
) -> tuple[Callable[[Float32, int], tuple[Int64, Float32]], dict[str, str]]:
    """A graph index of NVIDIA's cuVS. It is built from all rows at once, so they are all in host memory once."""
    import faiss as module

    faiss: Any = module  # faiss-cpu, which types are checked with, lacks these names

    if not hasattr(faiss, "GpuIndexCagra"):
        raise ValueError("this build of FAISS has no CAGRA (conda's faiss-gpu-cuvs has): take faiss-gpu-ivf")
    links, reach = options.get("links") or 64, options.get("ef_search") or 256
    config = faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = links, 2 * links
    metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    index = faiss.GpuIndexCagra(faiss.StandardGpuResources(), database.width, config, metric)
    index.train(database.read(0, len(database)))

    def search(queries: Float32, k: int) -> tuple[Int64, Float32]:
        parameters = faiss.SearchParametersCagra()
        parameters.itopk_size = max(reach, 32 * (-(-2 * k // 32)))
        scores, ids = index.search(queries, min(k, len(database)), params=parameters)
        return ids, np.where(ids < 0, -np.inf, -scores if l2 else scores).astype(np.float32)

    return search, {"links": str(links), "ef_search": str(reach)}
