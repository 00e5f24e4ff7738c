"""The ``torch-cuda`` engine of :mod:`curation.gpu.knn`: the whole search on the card, where it fits."""

from typing import Any

import numpy as np
import torch

from curation.gpu.knn.exclusions import MOST_LISTED, Exclusions
from curation.gpu.knn.matrix import Float32, Int64, Matrix
from curation.gpu.knn.nearest import ProductPrecision, nearest

# A query that may not be given more rows is left to the search by blocks.
MOST_EXCLUDED = MOST_LISTED


def search(
    queries: Any,
    database: Any,
    left: Matrix,
    right: Matrix,
    exclusions: Exclusions,
    *,
    need: int,
    metric: str,
    precision: str,
    device: torch.device,
    memory_budget: int,
) -> tuple[Int64, Float32, int] | None:
    """(ids int64[Q, need], scores float32[Q, need], queries ranked in full), exact in every precision.

    None where the card has no room for two copies of the rows and the result, or exclusions are too many.
    Tensors that are on the card already are not copied.
    """
    if exclusions.compared:
        return None
    banned = _padded(exclusions, len(left))
    if banned.shape[1] > MOST_EXCLUDED or not _has_room(left, right, need, device, memory_budget):
        return None
    first = _tensor(queries, left, device)
    second = first if database is queries else _tensor(database, right, device)
    products: ProductPrecision | None = (
        None if precision == "float32" else "tf32" if precision == "tf32" else "bfloat16"
    )
    ranks = nearest(
        first, second, count=need, metric=metric, precision=products, memory_budget=memory_budget,
        exclude=torch.from_numpy(banned).to(device) if banned.size else None,
    )  # fmt: skip
    return ranks.ids.cpu().numpy(), ranks.scores.cpu().numpy(), ranks.again[1]


def _padded(exclusions: Exclusions, queries: int) -> Int64:
    """int64[Q, e]: the rows that each query must not be given, each once; -1 where there are fewer."""
    banned = exclusions.of(np.arange(queries))
    positions, rows = banned.queries, banned.rows
    if len(positions) == 0:
        return np.empty((queries, 0), np.int64)
    order = np.lexsort((rows, positions))
    positions, rows = positions[order], rows[order]
    new = np.ones(len(positions), bool)
    new[1:] = (positions[1:] != positions[:-1]) | (rows[1:] != rows[:-1])
    positions, rows = positions[new], rows[new]
    counts = np.bincount(positions, minlength=queries)
    out = np.full((queries, min(int(counts.max()), MOST_EXCLUDED + 1)), -1, np.int64)
    within = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = within < out.shape[1]
    out[positions[inside], within[inside]] = rows[inside]
    return out


def _has_room(left: Matrix, right: Matrix, need: int, device: torch.device, budget: int) -> bool:
    if device.type != "cuda":
        return True
    rows = (len(left) + len(right)) * left.width * (4 + 2) + len(left) * need * 24
    free: int = torch.cuda.mem_get_info(device)[0]
    return rows + 2 * budget < free


def _tensor(values: Any, matrix: Matrix, device: torch.device) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        held = values.detach().to(device)
        return held.float() if held.dtype == torch.float64 else held
    # Copied where it may not be written to, of which torch warns.
    raw = np.require(matrix.raw, requirements=("C", "W"))
    rows = torch.from_numpy(raw if raw.dtype == np.float32 else raw.view(np.int16)).to(device)
    return rows if raw.dtype == np.float32 else rows.view(torch.float16)
