"""FAISS indexes, built and searched by blocks. ``faiss`` is optional, so it is imported where it is used."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from curation.gpu._matrix import Float32, Int64, Matrix

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

    The index holds a float32 copy of the database (``faiss-gpu``: on the GPU).

    Raises:
        ModuleNotFoundError: FAISS is not installed.
    """
    import faiss

    metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    count, width = len(database), database.width
    settings: dict[str, int] = {}
    if engine == "faiss-ivf":
        # FAISS advises 4 to 16 roots of N lists. A window of ranks 30 to 130 reaches into many: on pairs of
        # 16,000 commands a sixteenth of them found 0.62 of the window, a third 0.90.
        lists = min(options.get("nlist") or round(4 * count**0.5), max(1, count // 39))
        settings = {"nlist": lists, "nprobe": min(lists, options.get("nprobe") or max(32, lists // 4))}
        index: Any = faiss.index_factory(width, f"IVF{lists},Flat", metric)
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
