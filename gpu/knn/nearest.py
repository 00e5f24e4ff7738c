"""Exact nearest neighbours where the embeddings are: on the device, without an N×N matrix and without the host.

Products in a short float type shortlist; the shortlist is scored anew in float64; and a bound on what the
products may be off by proves, query by query, that nothing outside it belongs in. The few queries that cannot be
proved are searched again by float32 products, and what is left then by all scores. So the ranks are exact
whatever the precision, ties broken by index, and equal those of :func:`curation.gpu.knn.knn`.

O(Q·N·D) time. Memory: a copy of the database in the products' type, the result, and ``memory_budget`` bytes.
On CUDA the host waits for the device before the search and after it, and never within its loops.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch

Metric = Literal["ip", "l2"]
ProductPrecision = Literal["float16", "bfloat16", "tf32", "float32"]

PRODUCT_PRECISIONS: tuple[str, ...] = get_args(ProductPrecision)
METRICS: tuple[str, ...] = get_args(Metric)
MARGIN = 32
# A tile of products that the second-level cache holds: 32 MiB of float16 on an H100, which has 50.
TILE = 4096
# A unit of rounding for sums in the matrix units, which drop bits that float32 would keep.
_SUM = 2.0**-22


@dataclass(frozen=True, eq=False)
class Nearest:
    """What :func:`nearest` found, on the device of the queries.

    Args:
        ids: int64[Q, count], database rows by falling score, ties by index; -1 where a query has fewer.
        scores: float32[Q, count], inner products or minus squared distances; -inf beside -1.
        again: how many queries a second search was needed for, and how many a full ranking.
    """

    ids: torch.Tensor
    scores: torch.Tensor
    again: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Shortened:
    """Rows in the type that the products are made in.

    Args:
        rows: [N, D], times 2^exponent, so that neither they nor their products leave the type's range.
        lengths: float32[N] of the rows before shortening; errors: float32[N], of what was cut off.
    """

    rows: torch.Tensor
    lengths: torch.Tensor
    errors: torch.Tensor


def nearest(
    queries: torch.Tensor,
    database: torch.Tensor,
    *,
    count: int,
    metric: str = "ip",
    exclude: torch.Tensor | None = None,
    precision: ProductPrecision | None = None,
    memory_budget: int = 1 << 30,
) -> Nearest:
    """The ``count`` best database rows of every query.

    Args:
        queries: [Q, D] float32, float16 or bfloat16; database [N, D] likewise, on the same device.
        count: ranks to return, at least 1.
        metric: ``"ip"`` (inner product) or ``"l2"`` (squared Euclidean distance).
        exclude: int64[Q] or int64[Q, e], rows never given to a query; -1 for none.
        precision: of the shortlisting products; None is float16 on CUDA and float32 elsewhere. It changes the
            time, not the result.
        memory_budget: bytes for one block of queries.

    Returns:
        Nearest: all on the device of the queries.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a row holds NaN or infinity.
    """
    _check(queries, database, count, metric, exclude, precision)
    queries, database, l2 = queries.detach(), database.detach(), metric == "l2"
    banned = None if exclude is None else exclude.reshape(len(queries), -1)
    if precision is None:
        precision = "float16" if queries.is_cuda else "float32"
    ids = torch.full((len(queries), count), -1, dtype=torch.int64, device=queries.device)
    scores = torch.full((len(queries), count), -torch.inf, device=queries.device)
    with _Matmul(tf32=precision == "tf32"), torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        certain = _search(queries, database, banned, l2, precision, memory_budget, ids, scores)
    remaining = torch.nonzero(~certain)[:, 0]
    second = len(remaining)
    if second and precision != "float32":
        part = ids[remaining], scores[remaining]
        with _Matmul(tf32=False), torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
            certain = _search(
                queries[remaining], database, None if banned is None else banned[remaining], l2, "float32",
                memory_budget, *part,
            )  # fmt: skip
        ids[remaining], scores[remaining] = part
        remaining = remaining[~certain]
    rows = max(1, memory_budget // (64 * len(database)))
    for start in range(0, len(remaining), rows):
        block = remaining[start : start + rows]
        ids[block], scores[block] = _rank_all(
            queries[block], database, None if banned is None else banned[block], count, l2
        )
    return Nearest(ids, scores, (second if precision != "float32" else 0, len(remaining)))


def shorten(
    rows: torch.Tensor, precision: ProductPrecision, order: torch.Tensor | None = None
) -> tuple[Shortened, int]:
    """Rows in the type of the products, in another order where one is given, and the exponent they were raised by.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision, torch.float32)
    lengths = torch.empty(len(rows), device=rows.device)
    largest = torch.zeros((), device=rows.device)
    step = max(1, (64 << 20) // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step].float()
        lengths[start : start + step] = torch.linalg.vector_norm(part, dim=1)
        largest = torch.maximum(largest, part.abs().amax())
    top = float(largest)
    if not bool(torch.isfinite(lengths).all()):
        bad = int(torch.nonzero(~torch.isfinite(lengths))[0, 0])
        raise ValueError(f"row {bad} holds NaN or infinity, or is too long for float32: drop it or embed it again")
    # The largest entry becomes 1 to 2: float16 then neither overflows nor loses what counts to its denormals.
    exponent = -int(torch.tensor(top).log2().floor()) if top > 0 and dtype == torch.float16 else 0
    if rows.dtype == dtype and order is None and exponent == 0:
        return Shortened(rows, lengths, torch.zeros_like(lengths)), 0
    short = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    errors = torch.empty_like(lengths)
    for start in range(0, len(rows), step):
        take = slice(start, start + step)
        part = (rows[take] if order is None else rows[order[take]]).float()
        short[take] = part * 2.0**exponent
        errors[take] = torch.linalg.vector_norm(part - short[take].float() * 2.0**-exponent, dim=1)
    return Shortened(short, lengths, errors), exponent


def _search(
    queries: torch.Tensor,
    database: torch.Tensor,
    banned: torch.Tensor | None,
    l2: bool,
    precision: ProductPrecision,
    budget: int,
    out_ids: torch.Tensor,
    out_scores: torch.Tensor,
) -> torch.Tensor:
    """Fill in the ranks; bool[Q], which are proved."""
    count, size, width = out_ids.shape[1], len(database), database.shape[1]
    keep = min(size, count + MARGIN + (0 if banned is None else banned.shape[1]))
    filtered = kernels_run(queries) and 2 * TILE < size < 2**31
    # In a random order every stretch holds its share of a query's best, so the bars rise as they should.
    order = _permutation(size, database.device) if filtered else None
    right, up = shorten(database, precision, order)
    left, raised = shorten(queries, precision)
    longest, cut = right.lengths.max(), right.errors.max()
    squares = (right.lengths**2)[slice(None) if order is None else order] * 2.0 ** (up + raised) if l2 else None
    certain = torch.empty(len(queries), dtype=torch.bool, device=queries.device)
    rows = _query_block(len(queries), size, keep, budget, right.rows.element_size())
    for start in range(0, len(queries), rows):
        take = slice(start, start + rows)
        if filtered:
            ids, floor, spilt = shortlist_filtered(left.rows[take], right.rows, squares, keep)
        else:
            ids, floor = shortlist_plain(left.rows[take], right.rows, squares, keep, budget)
            spilt = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if order is not None:
            ids = order[ids]
        exact = pair_scores(queries[take], database, ids, l2=l2)
        if banned is not None:
            exact.masked_fill_((ids[:, :, None] == banned[take][:, None, :]).any(2), -torch.inf)
        ids, exact = _ranked(ids, exact, min(count, keep))
        out_ids[take, : ids.shape[1]] = torch.where(exact == -torch.inf, -1, ids)
        out_scores[take, : ids.shape[1]] = exact
        if keep == size:
            certain[take] = True
            continue
        bound = _product_error(left, right, take, longest, cut, precision, width)
        floor = floor * 2.0 ** -(up + raised)
        if precision in ("float16", "bfloat16"):
            # Products are rounded to the type they were made in, which keeps their order.
            floor = floor + floor.abs() * (2.0**-10 if precision == "float16" else 2.0**-7)
            bound = bound + 2.0**-14 * 2.0 ** -(up + raised) if precision == "float16" else bound
        if l2:
            largest = left.lengths[take] * longest
            slack = largest * (2.0**-9 if precision == "float16" else 2.0**-6) if precision in _SHORT else 0.0
            floor = floor - left.lengths[take] ** 2
            bound = 2 * bound + slack + 2.0**-20 * (left.lengths[take] ** 2 + longest**2)
        last = exact[:, -1]
        certain[take] = (last - last.abs() * 2.0**-23 > floor + bound) & ~spilt
    return certain


_SHORT = ("float16", "bfloat16")


def _product_error(
    left: Shortened,
    right: Shortened,
    take: slice,
    longest: torch.Tensor,
    cut: torch.Tensor,
    precision: ProductPrecision,
    width: int,
) -> torch.Tensor:
    """float32[Q]: how far a product may be from the true one, by Cauchy and Schwarz from what was cut off."""
    lengths, errors = left.lengths[take], left.errors[take]
    bound = errors * longest + (lengths + errors) * cut
    # tf32 keeps 10 bits of each factor; float32 sums are what :func:`curation.gpu.knn.matrix.product_error` says.
    rounding = {"tf32": 2.0**-9 * 1.01 + width * _SUM, "float32": 2 * (width + 8) * 2.0**-24}
    return bound * 1.001 + lengths * longest * rounding.get(precision, width * _SUM) + 1e-30


def shortlist_plain(
    left: torch.Tensor, right: torch.Tensor, squares: torch.Tensor | None, keep: int, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64[Q, keep], float32[Q] the lowest product kept) by tiles and ``torch.topk``."""
    best = torch.empty(len(left), 0, device=left.device)
    ids = torch.empty(len(left), 0, dtype=torch.int64, device=left.device)
    tile = max(TILE, budget // (32 * len(left)))
    for start in range(0, len(right), tile):
        z = (left @ right[start : start + tile].T).float()
        if squares is not None:
            z = z.mul_(2).sub_(squares[start : start + tile])
        top, columns = z.topk(min(keep, z.shape[1]), dim=1, sorted=False)
        best, ids = torch.cat([best, top], 1), torch.cat([ids, columns + start], 1)
        if best.shape[1] > keep:
            best, chosen = best.topk(keep, dim=1, sorted=False)
            ids = ids.gather(1, chosen)
    return ids, best.amin(1)


def shortlist_filtered(
    left: torch.Tensor, right: torch.Tensor, squares: torch.Tensor | None, keep: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same by a bar that rises, and bool[Q], whether a query had more above it than there was room for."""
    from curation.gpu.knn.kernels import keep_above

    tile = TILE
    count, room = len(left), 1 << (4 * keep - 1).bit_length()
    ids, best = _first(left, right[:tile], None if squares is None else squares[:tile], keep)
    spilt = torch.zeros(count, dtype=torch.bool, device=left.device)
    products = torch.empty(count, tile, dtype=left.dtype, device=left.device)
    slots = torch.arange(room, device=left.device)
    above = torch.empty(count, room, dtype=torch.int32, device=left.device)
    scores = torch.empty(count, room, device=left.device)
    seen = tile
    while seen < len(right):
        # Of a list in random order, as many rows again as it already had bring `keep` more above the bar.
        stop = min(len(right), seen + max(tile, seen * room // (2 * keep) // tile * tile))
        counts = torch.zeros(count, dtype=torch.int32, device=left.device)
        bars = best.amin(1)
        for start in range(seen, stop, tile):
            end = min(start + tile, stop)
            out = products[:, : end - start]
            torch.mm(left, right[start:end].T, out=out) if end - start == tile else out.copy_(left @ right[start:end].T)
            keep_above(out, None if squares is None else squares[start:end], bars, start, counts, above, scores)
        spilt |= counts > room
        scores.masked_fill_(slots >= counts[:, None], -torch.inf)
        best, chosen = torch.cat([best, scores], 1).topk(keep, dim=1, sorted=False)
        ids = torch.cat([ids, above.long()], 1).gather(1, chosen)
        seen = stop
    return ids, best.amin(1), spilt


def _first(
    left: torch.Tensor, right: torch.Tensor, squares: torch.Tensor | None, keep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    z = (left @ right.T).float()
    if squares is not None:
        z = z.mul_(2).sub_(squares)
    best, ids = z.topk(min(keep, z.shape[1]), dim=1, sorted=False)
    if best.shape[1] == keep:
        return ids, best
    # Slots that nothing fills yet: their bar lets everything through.
    gap = (0, keep - best.shape[1])
    return torch.nn.functional.pad(ids, gap), torch.nn.functional.pad(best, gap, value=-torch.inf)


def pair_scores(queries: torch.Tensor, database: torch.Tensor, ids: torch.Tensor, *, l2: bool) -> torch.Tensor:
    """float32[Q, c]: the score of ``queries[r]`` against row ``ids[r, c]`` (int64), added up in float64.

    The same sums in the same order as :meth:`curation.gpu.knn.matrix.Matrix.score_pairs`, on any device.
    """
    if kernels_run(queries):
        from curation.gpu.knn.kernels import scores

        left, right = (x if x.stride(1) == 1 else x.contiguous() for x in (queries, database))
        return scores(left, right, ids.contiguous(), l2=l2)
    out = torch.empty(ids.shape, device=ids.device)
    width = queries.shape[1]
    step = max(1, (1 << 22) // (width * ids.shape[1]))
    for start in range(0, len(ids), step):
        take = slice(start, start + step)
        rows = database[ids[take]].float().double()
        query = queries[take].float().double()[:, None, :]
        sums = torch.zeros(*rows.shape[:2], 8, dtype=torch.float64, device=ids.device)
        for first in range(0, width, 8):
            x, y = query[..., first : first + 8], rows[..., first : first + 8]
            sums[..., : x.shape[2]] += -((x - y) * (x - y)) if l2 else x * y
        for _ in range(3):
            sums = sums[..., ::2] + sums[..., 1::2]
        out[take] = sums[..., 0].float()
    return out


def _rank_all(
    queries: torch.Tensor, database: torch.Tensor, banned: torch.Tensor | None, count: int, l2: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ranks by the scores of all rows: for the few queries that nothing else could decide."""
    everything = torch.arange(len(database), device=queries.device).expand(len(queries), -1)
    exact = torch.cat([pair_scores(queries, database, part, l2=l2) for part in _columns(everything)], 1)
    if banned is not None:
        exact.scatter_reduce_(
            1, banned.clamp(min=0), torch.where(banned < 0, torch.inf, -torch.inf).to(exact.dtype), "amin"
        )
    top = min(count, len(database))
    ids, scores = _ranked(everything, exact, top)
    gap = (0, count - top)
    ids = torch.where(scores == -torch.inf, -1, ids)
    return torch.nn.functional.pad(ids, gap, value=-1), torch.nn.functional.pad(scores, gap, value=-torch.inf)


def _columns(ids: torch.Tensor) -> list[torch.Tensor]:
    return [ids[:, start : start + TILE] for start in range(0, ids.shape[1], TILE)]


def _ranked(ids: torch.Tensor, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` by falling score, ties by index."""
    ids, order = ids.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order)[:, :count], scores[:, :count]


def kernels_run(rows: torch.Tensor) -> bool:
    """Whether Triton's kernels take these rows."""
    return rows.is_cuda and find_spec("triton") is not None


def _permutation(size: int, device: torch.device) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator(device).manual_seed(0), device=device)


def _query_block(queries: int, size: int, keep: int, budget: int, item: int) -> int:
    # A tile of products, and slots for what passes, their merger and the shortlist's scores.
    row = item * min(TILE, size) + 160 * keep
    return max(1, min(queries, TILE, budget // row))


def _check(
    queries: torch.Tensor,
    database: torch.Tensor,
    count: int,
    metric: str,
    exclude: torch.Tensor | None,
    precision: str | None,
) -> None:
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1] or 0 in database.shape:
        raise ValueError(
            f"queries must be [Q, D] and database [N, D], not {tuple(queries.shape)} and {tuple(database.shape)}"
        )
    for name, rows in (("queries", queries), ("database", database)):
        if rows.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"{name} must be float32, float16 or bfloat16, not {rows.dtype}")
    if queries.device != database.device:
        raise ValueError(f"queries are on {queries.device}, but the database is on {database.device}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    if precision is not None and precision not in PRODUCT_PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRODUCT_PRECISIONS)}, not {precision!r}")
    if exclude is not None and (exclude.shape[:1] != queries.shape[:1] or exclude.dtype != torch.int64):
        raise ValueError(f"exclude must be int64[{len(queries)}, e], not {exclude.dtype}{list(exclude.shape)}")


class _Matmul:
    # torch keeps these switches for the whole process, so they are put back.
    def __init__(self, *, tf32: bool) -> None:
        self._wanted = (tf32, False, False)

    def _names(self) -> tuple[str, str, str]:
        return "allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"

    def __enter__(self) -> None:
        switches = torch.backends.cuda.matmul
        self._before = [getattr(switches, name) for name in self._names()]
        for name, value in zip(self._names(), self._wanted, strict=True):
            setattr(switches, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in zip(self._names(), self._before, strict=True):
            setattr(torch.backends.cuda.matmul, name, value)
