"""The CUDA kernels of :mod:`curation.gpu.knn.nearest`.

``keep_above`` looks through a tile of products, fresh from the matrix unit and still in the second-level cache,
and appends what is above the query's bar, the best so far, to the query's own slots. That costs some four
instructions a product, where ``torch.topk`` reads the tile several times over. An atomic counter hands out the
slots, so their order is not fixed, but the set is.

``scores`` is the exact score of chosen pairs, added up in the order of :mod:`curation.gpu.knn.matrix`: float64,
eight running sums, so host and device agree bit for bit.
"""

import torch
import triton
import triton.language as tl

_WIDTH = 1024
_ENTRIES = 64


@triton.jit(do_not_specialize=["first"])  # type: ignore[untyped-decorator]
def keep_above_kernel(  # type: ignore[no-untyped-def]
    products, offsets, bars, counts, ids, scores, columns, first, stride, factor, cap,
    L2: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0)
    bar = tl.load(bars + query)
    counter = counts + query + tl.zeros([WIDTH], tl.int32)
    row = products + query.to(tl.int64) * stride
    slots = query.to(tl.int64) * cap
    for low in range(0, columns, WIDTH):
        column = low + tl.arange(0, WIDTH)
        z = tl.load(row + column, mask=column < columns, other=float("-inf")).to(tl.float32) * factor
        if L2:
            z -= tl.load(offsets + column, mask=column < columns, other=0.0)
        if tl.max(z, 0) > bar:
            passes = z > bar
            slot = tl.atomic_add(counter, 1, mask=passes, sem="relaxed")
            passes = passes & (slot < cap)
            tl.store(scores + slots + slot, z, mask=passes)
            tl.store(ids + slots + slot, first + column, mask=passes)


def keep_above(
    products: torch.Tensor,
    squares: torch.Tensor | None,
    bars: torch.Tensor,
    first: int,
    counts: torch.Tensor,
    ids: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Append what is above the bars.

    Args:
        products: [Q, n] of any float dtype: ⟨q, x⟩ with database rows ``first..first + n - 1``.
        squares: float32[n], those rows' squared lengths: what counts is 2·⟨q, x⟩ - |x|². None: ⟨q, x⟩.
        bars: float32[Q].
        counts: int32[Q], how many each query has had; may come to exceed the slots.
        ids, scores: int32 and float32 [Q, slots].
    """
    keep_above_kernel[(len(products),)](
        products, bars if squares is None else squares, bars, counts, ids, scores, products.shape[1], first,
        products.stride(0), 1.0 if squares is None else 2.0, ids.shape[1], L2=squares is not None, WIDTH=_WIDTH,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def scores_kernel(  # type: ignore[no-untyped-def]
    queries, database, ids, out, width, stride_queries, stride_database,
    D: tl.constexpr, L2: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    row = tl.load(ids + query * width + entry, mask=entry < width, other=-1).to(tl.int64)
    lane = tl.arange(0, 8)
    rows = database + tl.maximum(row, 0)[:, None] * stride_database
    total = tl.zeros([ENTRIES, 8], tl.float64)
    for start in range(0, D, 8):
        d = start + lane
        x = tl.load(queries + query * stride_queries + d, mask=d < D, other=0.0).to(tl.float32).to(tl.float64)
        y = tl.load(rows + d[None, :], mask=(d < D)[None, :], other=0.0).to(tl.float32).to(tl.float64)
        if L2:
            gap = x[None, :] - y
            total -= gap * gap
        else:
            total += x[None, :] * y
    # ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), as the host adds them.
    left, right = tl.split(total.reshape([ENTRIES, 2, 2, 2]))
    left, right = tl.split(left + right)
    left, right = tl.split(left + right)
    score = tl.where(row < 0, float("-inf"), (left + right).to(tl.float32))
    tl.store(out + query * width + entry, score, mask=entry < width)


def scores(queries: torch.Tensor, database: torch.Tensor, ids: torch.Tensor, *, l2: bool) -> torch.Tensor:
    """float32[Q, c]: each query's score against the rows ``ids`` int64[Q, c]; -inf where an id is -1."""
    out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    # Without fusion a product is rounded before it is added, as on the host.
    scores_kernel[(len(ids), triton.cdiv(ids.shape[1], _ENTRIES))](
        queries, database, ids, out, ids.shape[1], queries.stride(0), database.stride(0),
        D=queries.shape[1], L2=l2, ENTRIES=_ENTRIES, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
