"""The CUDA path of :mod:`curation.gpu.learnability`: product, non-linearity and sum in one kernel.

A program owns a block of candidates and walks over its share of the taken examples; tiles live in
registers only. No atomics: shares are added up afterwards in a fixed order, so a run repeats bit by bit.
The walk is one loop over (tile of taken, step of D), so that loads of the next tile overlap the arithmetic
of this one. Programs of one block and different shares run side by side, so that the block's rows, which are
read again for each tile, come from the second-level cache. Accumulators are float32; logits are in base 2,
which is what the hardware's exp and log take.
"""

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl

_LOG2E = 1 / math.log(2)
_LN2 = math.log(2)
_PROGRAMS = 528  # four for each of an H100's 132 multiprocessors
_SHARE = 512  # taken examples a program walks over: four such programs read the same rows at the same time
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@triton.jit
def _joint(p, q):  # type: ignore[no-untyped-def]
    # (1 + p)(1 + q) - 1
    return p + q + p * q


@triton.jit
def _larger(p, q):  # type: ignore[no-untyped-def]
    return tl.maximum(p, q)


@triton.jit(do_not_specialize=["size_class"])  # type: ignore[untyped-decorator]
def sums_kernel(  # type: ignore[no-untyped-def]
    taken, rows, out, n_taken, n_rows, share, groups, stride_taken, stride_rows, scale, bias, size_class,
    D: tl.constexpr, SOFTMAX: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, POINTERS: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[group, j]: sigmoid Σ log2(1 + 2^y), softmax log2 Σ 2^y, over the group's share of taken; y in base 2.

    With POINTERS scale and bias are addresses of float32, and in base e.
    """
    if POINTERS:
        scale = tl.load(scale) * 1.4426950408889634
        bias = tl.load(bias) * 1.4426950408889634
    j = tl.program_id(0) // groups * BLOCK_J + tl.arange(0, BLOCK_J)
    group = tl.program_id(0) % groups
    first = group * share
    last = tl.minimum(first + share, n_taken)
    row_offsets = tl.minimum(j, n_rows - 1).to(tl.int64)[:, None] * stride_rows
    steps_d: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles = (last - first + BLOCK_S - 1) // BLOCK_S
    acc = tl.zeros([BLOCK_J, BLOCK_S], tl.float32)
    total = tl.zeros([BLOCK_J], tl.float32)
    top = tl.full([BLOCK_J], -3e38, tl.float32)
    for step in range(tiles * steps_d):
        s = first + (step // steps_d) * BLOCK_S + tl.arange(0, BLOCK_S)
        d = (step % steps_d) * BLOCK_D + tl.arange(0, BLOCK_D)
        taken_offsets = tl.minimum(s, n_taken - 1).to(tl.int64)[None, :] * stride_taken
        if D % BLOCK_D == 0:
            x = tl.load(rows + row_offsets + d[None, :])
            y = tl.load(taken + taken_offsets + d[:, None])
        else:
            x = tl.load(rows + row_offsets + d[None, :], mask=d[None, :] < D, other=0.0)
            y = tl.load(taken + taken_offsets + d[:, None], mask=d[:, None] < D, other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
        if step % steps_d == steps_d - 1:
            z = acc * scale + bias
            if not EVEN:
                z = tl.where(s[None, :] < last, z, -3e38)
            if SOFTMAX:
                new_top = tl.maximum(top, tl.reduce(z, 1, _larger))
                total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(z - new_top[:, None]), 1)
                top = new_top
            else:
                # One logarithm a tile: Σ log(1 + u) = log Π (1 + u), with the product kept less 1 so that small u
                # count. Below 1 by a hair, 128 factors stay under float32's 2^128.
                u = tl.minimum(tl.exp2(-tl.abs(z)), 0.999999)
                q = tl.reduce(u, 1, _joint)
                # log2(1 + q) drops q below 2^-24, where it is q · log2(e) to within float32.
                log = tl.where(q < 1e-3, q * (1.4426950 - q * (0.7213475 - q * 0.4808983)), tl.log2(1.0 + q))
                total += log + tl.sum(tl.maximum(z, 0.0), 1)
            acc = tl.zeros([BLOCK_J, BLOCK_S], tl.float32)
    result = total
    if SOFTMAX:
        result = top + tl.log2(total)
    tl.store(out + group.to(tl.int64) * n_rows + j, result, mask=j < n_rows)


def configs() -> list[triton.Config]:
    def config(j: int, s: int, d: int, warps: int, stages: int) -> triton.Config:
        return triton.Config({"BLOCK_J": j, "BLOCK_S": s, "BLOCK_D": d}, num_warps=warps, num_stages=stages)

    if _INTERPRETED:
        return [config(32, 16, 16, 4, 1)]
    return [
        config(128, 128, 64, 8, 3),
        config(128, 128, 64, 4, 3),
        config(128, 128, 128, 8, 2),
        config(256, 128, 64, 8, 3),
        config(256, 128, 64, 8, 4),
        config(256, 128, 32, 8, 4),
        config(128, 64, 64, 4, 4),
        config(128, 128, 32, 8, 3),
        config(64, 64, 32, 4, 3),
    ]


def _fits(configs: list[Any], arguments: dict[str, Any], **more: Any) -> list[Any]:
    # float32 tiles are twice as large, and three-pass tf32 keeps two copies: the large ones would not fit.
    wide = arguments["rows"].dtype == torch.float32
    return [c for c in configs if not wide or c.kwargs["BLOCK_J"] * c.kwargs["BLOCK_D"] <= 4096] or configs[-1:]


_tuned = triton.autotune(
    configs(),
    key=["D", "size_class", "SOFTMAX", "EVEN", "PRECISION"],
    prune_configs_by={"early_config_prune": _fits},
)(sums_kernel)


def groups_of(taken: int, rows: int) -> tuple[int, int]:
    """(groups, taken examples in each): how a call's sums are split; the last group may be shorter."""
    # Few candidates do not fill the card: then their sums are split further.
    wanted = max(triton.cdiv(_PROGRAMS, triton.cdiv(rows, 128)), triton.cdiv(taken, _SHARE))
    share = triton.cdiv(triton.cdiv(taken, min(wanted, triton.cdiv(taken, 128))), 128) * 128
    return triton.cdiv(taken, share), share


def accumulate_triton(
    taken: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    loss: str,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
) -> None:
    """See :func:`curation.gpu.learnability.accumulate`. Beside ``out`` it holds float32[groups, B].

    The first call for a new (D, order of magnitude of S, loss, dtype) times the tile shapes, which waits for the
    device.
    """
    taken, rows = (x if x.stride(1) == 1 else x.contiguous() for x in (taken, rows))
    softmax = loss == "softmax"
    groups, share = groups_of(len(taken), len(rows))
    partial = torch.empty(groups, len(rows), dtype=torch.float32, device=rows.device)
    pointers = isinstance(scale, torch.Tensor) or isinstance(bias, torch.Tensor)
    factors = [_address(x, rows.device) if pointers else x * _LOG2E for x in (scale, bias)]

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(len(rows), chosen["BLOCK_J"]) * groups,)

    _tuned[grid](
        taken, rows, partial, len(taken), len(rows), share, groups, taken.stride(0), rows.stride(0),
        *factors, (len(taken) - 1).bit_length(), D=rows.shape[1], SOFTMAX=softmax,
        EVEN=len(taken) % 128 == 0, POINTERS=pointers,
        PRECISION="tf32x3" if rows.dtype == torch.float32 else "tf32",
        # Triton's interpreter keeps bfloat16 as integers and multiplies those.
        UPCAST=_INTERPRETED and rows.dtype == torch.bfloat16,
    )  # fmt: skip
    partial = partial.double().mul_(_LN2)
    if softmax:
        torch.logaddexp(out, torch.logsumexp(partial, 0), out=out)
    else:
        out += partial.sum(0)


def _address(factor: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """float32[] on the device, without a wait."""
    if isinstance(factor, torch.Tensor):
        return factor.detach().to(device, torch.float32)
    return torch.full((), factor, dtype=torch.float32, device=device)
