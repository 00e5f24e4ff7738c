"""The CPU path of :mod:`curation.gpu.learnability`: a matrix product for each tile, then one pass over it.

Logits are taken in base 2, so that exp and log cost no extra product. Σ softplus(z) needs one exp for each
element but a logarithm only once in 120, since Σ log(1 + u_i) = log Π (1 + u_i). The product is kept as
q = Π (1 + u_i) - 1, which loses nothing where the u_i are small.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numba
import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.compiled import compiled

_LOG2E = 1 / math.log(2)
_LN2 = math.log(2)
_LANES = 128
_WORTH_A_THREAD = 1 << 16  # logits: some 60 µs
_FACTORS = 120  # each is at most 2, and float32 ends at 2^128
_f = np.float32
_i = np.int32
_ROUND = _f(12_582_912)  # 1.5 · 2^23: adding it rounds to an integer and leaves that in the low bits
_C0, _C1, _C2 = _f(1.0000000716546706), _f(0.6931469670643624), _f(0.24022119723882132)
_C3, _C4, _C5 = _f(0.055507132741502326), _f(0.00967554133275923), _f(0.0013276471781593418)


@numba.njit(inline="always")
def _exp2(t: np.float32) -> np.float32:
    """2^t for t ≤ 0 to a relative error of 2e-7; minimax polynomial on [-½, ½]; 2^-126 stands for all below."""
    t = max(t, _f(-126))
    shifted = _f(t + _ROUND)
    f = t - (shifted - _ROUND)
    p = _f(((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0)
    return _i(p.view(_i) + (shifted.view(_i) << _i(23))).view(_f)


# Without "contract" the products and sums are not fused; without the others max() does not vectorise.
# "reassoc" must stay out: it would cancel the rounding constant.
@compiled(nogil=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def _add_softplus(z, low, high, scale, bias, out):  # type: ignore[no-untyped-def]
    count = z.shape[0]
    q = np.empty(_LANES, _f)
    linear = np.empty(_LANES, _f)
    for start in range(low, high, _LANES):
        width = min(_LANES, high - start)
        for first in range(0, count, _FACTORS):
            q[:] = _f(0)
            linear[:] = _f(0)
            for i in range(first, min(count, first + _FACTORS)):
                row = z[i, start : start + width]
                for lane in range(width):
                    y = row[lane] * scale + bias
                    linear[lane] += max(y, _f(0))
                    u = _exp2(-abs(y))
                    q[lane] += u + q[lane] * u
            for lane in range(width):
                out[start + lane] += np.float64(linear[lane]) * _LN2 + np.log1p(np.float64(q[lane]))


@compiled(nogil=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def _add_exponentials(z, low, high, scale, bias, out):  # type: ignore[no-untyped-def]
    count = z.shape[0]
    top = np.empty(_LANES, _f)
    total = np.empty(_LANES, _f)
    for start in range(low, high, _LANES):
        width = min(_LANES, high - start)
        top[:] = _f(-3e38)
        total[:] = _f(0)
        for i in range(count):
            row = z[i, start : start + width]
            for lane in range(width):
                top[lane] = max(top[lane], row[lane] * scale + bias)
        for i in range(count):
            row = z[i, start : start + width]
            for lane in range(width):
                total[lane] += _exp2(row[lane] * scale + bias - top[lane])
        for lane in range(width):
            new = np.float64(top[lane]) * _LN2 + np.log(np.float64(total[lane]))
            old = out[start + lane]
            out[start + lane] = max(old, new) + np.log1p(np.exp(-abs(old - new)))


def accumulate_numba(
    taken: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    loss: str,
    scale: float,
    bias: float,
    width: int,
) -> None:
    """See :func:`curation.gpu.learnability.accumulate`; ``width`` columns a tile.

    A small round takes some 0.1 ms, so what costs 10 µs (autocast's context, a pool that nobody needs) is left out.
    """
    kernel = _add_softplus if loss == "sigmoid" else _add_exponentials
    scale32, bias32 = _f(scale * _LOG2E), _f(bias * _LOG2E)
    # Out of autograd's and autocast's sight: a detached operand, and a result in a given tensor.
    taken, rows = taken.detach().float(), rows.detach()
    count, size = taken.shape[0], rows.shape[0]
    width = min(width, size)
    # Plain threads rather than numba's own pool: that one aborts when two Python threads enter it, or after a fork.
    workers = max(1, min(torch.get_num_threads(), count * width // _WORTH_A_THREAD))
    buffer = torch.empty(count * width, dtype=torch.float32)
    sums: npt.NDArray[np.float64] = out.numpy()
    with ThreadPoolExecutor(workers - 1) if workers > 1 else nullcontext() as pool:
        for start in range(0, size, width):
            stop = min(start + width, size)
            tile = buffer[: count * (stop - start)].view(count, stop - start)
            torch.mm(taken, rows[start:stop].float().T, out=tile)
            z, into = tile.numpy(), sums[start:stop]
            if pool is None:
                kernel(z, 0, stop - start, scale32, bias32, into)
                continue
            step = -(-(stop - start) // (workers * _LANES)) * _LANES
            bounds = [(low, min(low + step, stop - start)) for low in range(0, stop - start, step)]
            others = [pool.submit(kernel, z, low, high, scale32, bias32, into) for low, high in bounds[1:]]
            kernel(z, *bounds[0], scale32, bias32, into)
            for other in others:
                other.result()
