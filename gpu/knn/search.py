"""Nearest neighbours between two sets of embeddings, exact unless asked otherwise; never an N×N matrix.

Exact engines (``torch-cuda``, ``torch-cpu``, ``faiss-gpu``, ``faiss-flat``) return the same ids and the same
scores, ties broken by index: each shortlists by float32 products, then :mod:`curation.gpu.knn.matrix` scores the
shortlist alike for all, and any query whose shortlist cannot be proved complete is ranked in full.
Approximate ones (``faiss-ivf``, ``faiss-hnsw``, ``faiss-gpu-ivf``, ``faiss-cagra``) shortlist by less, are scored
the same way, and come with the recall measured on a sample of queries. ``torch-cuda`` searches on the card
(:mod:`curation.gpu.knn.nearest`) where the rows fit there, and is exact in every precision; where they do not, it
goes block by block, and ``precision="tf32"`` or ``"bfloat16"`` is approximate too.

O(Q·N·D) time for the exact engines; memory is the two inputs, the result and ``memory_budget`` bytes (a FAISS
engine copies the database into its index).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.knn import faiss
from curation.gpu.knn.cpu import rank_rows, shortlist
from curation.gpu.knn.exclusions import Banned, Exclusions
from curation.gpu.knn.matrix import Float32, Int64, Matrix, product_error
from curation.gpu.knn.nearest import METRICS as METRICS
from curation.gpu.knn.nearest import Metric as Metric

log = logging.getLogger(__name__)

Engine = Literal[
    "auto", "torch-cuda", "torch-cpu", "faiss-gpu", "faiss-flat", "faiss-ivf", "faiss-hnsw", "faiss-gpu-ivf",
    "faiss-cagra",
]  # fmt: skip
Precision = Literal["float32", "tf32", "bfloat16"]

ENGINES: tuple[str, ...] = get_args(Engine)
APPROXIMATE = ("faiss-ivf", "faiss-hnsw", "faiss-gpu-ivf", "faiss-cagra")
PRECISIONS: tuple[str, ...] = get_args(Precision)
# Above this a CPU needs hours for an exact search, so "auto" takes IVF where FAISS is installed.
EXACT_ON_CPU = 400_000
# Extra places on the shortlist, so that rounding in the products rarely reaches the ranks asked for.
MARGIN = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Neighbours:
    """What :func:`knn` found.

    Args:
        indices: int32[Q, count] (int64 where N ≥ 2^31), database rows by falling score, ties by index;
            -1 where a query has fewer.
        scores: float32[Q, count], inner products or minus squared distances; -inf beside -1.
        engine: the engine that ran, and ``exact``, whether the ranks are proved exact.
        recall: share of the exact ranks found, on a sample of queries; None for exact engines.
        rechecked: queries ranked in full because their shortlist could not be proved complete.
        settings: the engine's own settings, as strings.
    """

    indices: npt.NDArray[np.signedinteger[Any]]
    scores: Float32
    engine: str
    exact: bool
    recall: float | None = None
    rechecked: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)


def knn(
    queries: Any,
    database: Any,
    *,
    count: int,
    offset: int = 0,
    metric: str = "ip",
    exclude: npt.ArrayLike | None = None,
    exclude_same: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]] = (),
    engine: str = "auto",
    precision: str = "float32",
    memory_budget: int = 1 << 30,
    recall_sample: int = 256,
    seed: int = 0,
    options: Mapping[str, int] | None = None,
) -> Neighbours:
    """Ranks ``offset`` to ``offset + count`` (from 0) of every query among the database's rows.

    Args:
        queries: [Q, D] float32, float16 or bfloat16: a numpy array, a memory map or a torch tensor.
        database: [N, D], likewise; dtypes may differ. Neither is normalised here.
        count: ranks to return.
        offset: nearest ranks to skip; what is excluded takes no rank.
        metric: ``"ip"`` (inner product) or ``"l2"`` (squared Euclidean distance).
        exclude: int[Q] or int[Q, e], database rows never given to a query; -1 for none. For a self-search
            pass ``np.arange(Q)``.
        exclude_same: (int[Q], int[N]) columns of ids: rows of an equal id are never given; -1 excludes nothing.
        engine: one of ``ENGINES``; ``"auto"`` goes by what is installed, the device and N, and logs its choice.
        precision: of the products that shortlist on CUDA: ``"float32"`` (exact), ``"tf32"`` or ``"bfloat16"``
            (a longer shortlist where the search goes block by block; recall is measured then).
        memory_budget: bytes for tiles.
        recall_sample: queries on which an approximate engine is measured.
        seed: of that sample and of IVF's training.
        options: ``nlist`` and ``nprobe`` (IVF), ``links`` and ``ef_search`` (HNSW, CAGRA).

    Returns:
        Neighbours: int32[Q, count] and float32[Q, count], as its own docstring says.

    Raises:
        ValueError: shapes or dtypes do not fit, an option is unknown, or a row holds NaN or infinity.
        ModuleNotFoundError: a FAISS engine was named and FAISS is not installed.
    """
    left, right = Matrix(queries, "queries"), Matrix(database, "database")
    _validate(left, right, count, offset, metric, engine, precision, memory_budget)
    exclusions = Exclusions(
        None if exclude is None else np.asarray(exclude, np.int64),
        [(np.asarray(a, np.int64), np.asarray(b, np.int64)) for a, b in exclude_same],
        len(left),
        len(right),
    )
    l2 = metric == "l2"
    chosen = choose(engine, len(right), compared=exclusions.compared)
    need = min(offset + count, len(right))
    if chosen == "torch-cuda":
        from curation.gpu.knn import cuda

        ranks = cuda.search(
            queries, database, left, right, exclusions, need=need, metric=metric, precision=precision,
            device=torch.device("cuda"), memory_budget=memory_budget,
        )  # fmt: skip
        if ranks is not None:
            return exact_result(*ranks, count, offset, chosen, precision, len(right))
    approximate = chosen in APPROXIMATE or (precision != "float32" and chosen == "torch-cuda")
    keep = min(len(right), need + (max(need, MARGIN) if approximate else MARGIN))
    read = max(1, memory_budget // (16 * right.width))
    longest = float(right.norms(read).max())
    lengths = left.norms(read)
    error = product_error(lengths, longest, right.width, l2=l2)
    rows, tile = _tiles(len(left), len(right), right.width, keep, memory_budget)

    find: Callable[[Float32, int, Banned], tuple[Int64, Float32]]
    settings: dict[str, str] = {}
    if chosen.startswith("faiss"):
        search, settings = faiss.build(chosen, right, l2=l2, block=read, seed=seed, options=options or {})
        largest = faiss.GPU_LARGEST_K if chosen in faiss.ON_GPU else len(right)

        def find(part: Float32, keep: int, banned: Banned) -> tuple[Int64, Float32]:
            # FAISS cannot leave out a row for one query only, so the banned ones are asked for as well.
            extra = 4 * keep if banned.columns else min(banned.most(), 4 * keep)
            return search(part, min(keep + extra, largest))
    else:
        device = torch.device("cuda" if chosen == "torch-cuda" else "cpu")

        def find(part: Float32, keep: int, banned: Banned) -> tuple[Int64, Float32]:
            return shortlist(
                part, right, keep, banned, l2=l2, tile=tile, device=device, precision=precision,
                scan=device.type == "cpu",
            )  # fmt: skip

    def ranked(which: Int64, certify: bool) -> tuple[Int64, Float32, int]:
        part, banned = left.take(which), exclusions.of(which)
        ids, approximation = find(part, keep, banned)
        # Nothing outside a full shortlist can score above its last entry and the product's error.
        ceiling = np.where((ids < 0).any(1), -np.inf, approximation.min(1) + error[which])
        if ids.shape[1] == len(right):
            ceiling[:] = -np.inf
        ids = np.where(banned.among(ids, len(right)), -1, ids)
        scores = right.score_pairs(part, ids, l2=l2)
        order = np.lexsort((np.where(ids < 0, len(right), ids), -scores))[:, :need]
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        if ids.shape[1] < need:
            gap = need - ids.shape[1]
            ids = np.pad(ids, ((0, 0), (0, gap)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, gap)), constant_values=-np.inf)
        doubt = scores[:, -1] <= ceiling if certify else ids[:, -1] < 0
        again = np.flatnonzero(doubt & np.isfinite(ceiling)) if certify else np.flatnonzero(doubt)
        if len(again):
            ids[again], scores[again] = rank_rows(
                part[again], right, need, exclusions.of(which[again]), l2=l2, budget=memory_budget
            )
        return ids, scores, len(again)

    out_ids = np.full((len(left), count), -1, np.int32 if len(right) < 2**31 else np.int64)
    out_scores = np.full((len(left), count), -np.inf, np.float32)
    rechecked = 0
    with _matmul(precision):
        for start in range(0, len(left), rows):
            stop = min(start + rows, len(left))
            ids, scores, again = ranked(np.arange(start, stop), not approximate)
            out_ids[start:stop, : max(0, need - offset)] = ids[:, offset:]
            out_scores[start:stop, : max(0, need - offset)] = scores[:, offset:]
            rechecked += again
    recall = None
    if approximate:
        size = min(recall_sample, len(left))
        picked = np.sort(np.random.default_rng((seed, 2)).choice(len(left), size, replace=False))
        truth = knn(
            left.take(picked), database, count=count, offset=offset, metric=metric,
            exclude_same=[(np.asarray(a)[picked], b) for a, b in exclude_same],
            exclude=None if exclude is None else np.asarray(exclude)[picked],
            engine="torch-cuda" if chosen in ("torch-cuda",) else "torch-cpu", memory_budget=memory_budget,
        )  # fmt: skip
        recall = _recall(out_ids[picked], truth.indices)
    log.info(
        "nearest neighbours: engine %s (%s asked), %d queries × %d rows × %d, ranks %d to %d, %d ranked in full%s",
        chosen, engine, len(left), len(right), right.width, offset, offset + count, rechecked,
        "" if recall is None else f", recall {recall:.3f}",
    )  # fmt: skip
    return Neighbours(
        indices=out_ids, scores=out_scores, engine=chosen, exact=not approximate, recall=recall,
        rechecked=rechecked, settings={"precision": precision, **settings},
    )  # fmt: skip


def exact_result(
    ids: Int64, scores: Float32, rechecked: int, count: int, offset: int, engine: str, precision: str, size: int
) -> Neighbours:
    """Ranks from 0 as :class:`Neighbours` from ``offset`` on, padded to ``count``; ``size`` is the database's N."""
    gap = ((0, 0), (0, max(0, offset + count - ids.shape[1])))
    ids = np.pad(ids, gap, constant_values=-1)[:, offset : offset + count]
    return Neighbours(
        indices=ids.astype(np.int32 if size < 2**31 else np.int64),
        scores=np.pad(scores, gap, constant_values=-np.inf)[:, offset : offset + count],
        engine=engine, exact=True, rechecked=rechecked, settings={"precision": precision},
    )  # fmt: skip


def choose(engine: str, size: int, *, compared: bool = False) -> str:
    """The engine that ``"auto"`` stands for here; any other name is returned.

    Args:
        engine: one of ``ENGINES``.
        size: database rows.
        compared: whether many rows share an id that excludes them (:attr:`Exclusions.compared`), as a label does:
            FAISS finds little else then, and most queries would be ranked in full.
    """
    if engine != "auto":
        return engine
    if faiss.gpus() and not compared:
        return "faiss-gpu"
    if torch.cuda.is_available():
        return "torch-cuda"
    if size > EXACT_ON_CPU and faiss.installed() and not compared:
        return "faiss-ivf"
    return "torch-cpu"


def _validate(
    left: Matrix, right: Matrix, count: int, offset: int, metric: str, engine: str, precision: str, budget: int
) -> None:
    if left.width != right.width:
        raise ValueError(f"queries have {left.width} columns, but the database has {right.width}")
    if count < 1 or offset < 0:
        raise ValueError(f"count must be at least 1 and offset not negative, not {count} and {offset}")
    for name, value, known in (
        ("metric", metric, METRICS),
        ("engine", engine, ENGINES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if budget < 1 << 20:
        raise ValueError(f"memory_budget must be at least 1 MiB, not {budget} bytes")
    if engine == "torch-cuda" and not torch.cuda.is_available():
        raise ValueError("engine torch-cuda needs a CUDA device, and torch sees none: take torch-cpu")
    if engine in faiss.ON_GPU and faiss.installed() and not faiss.gpus():
        raise ValueError(f"engine {engine} needs faiss-gpu and a GPU, and there is none: take faiss-flat or faiss-ivf")


def _tiles(queries: int, database: int, width: int, keep: int, budget: int) -> tuple[int, int]:
    # A query block holds its own rows, its shortlist (ids and scores, four times over while it is scanned)
    # and a tile of scores; a tile also holds its rows twice while they are converted.
    tile = int(min(database, max(256, min(16_384, budget // (16 * width)))))
    row = 4 * tile + 4 * width + 64 * keep + 4096
    return int(min(queries, max(1, (budget // 2) // row), 8192)), tile


def _recall(ids: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    if not (truth >= 0).any():
        return 1.0
    # A number for each pair of query and row.
    query = np.arange(len(truth))[:, None] * np.int64(max(int(truth.max()), int(ids.max())) + 1)
    return float(np.isin((truth + query)[truth >= 0], (ids + query)[ids >= 0]).mean())


class _matmul:  # noqa: N801 - reads as a function
    # torch keeps this switch for the whole process, so it is put back.
    def __init__(self, precision: str) -> None:
        self._wanted = precision == "tf32"

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self._wanted

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before
