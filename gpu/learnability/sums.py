"""Running sums of a contrastive loss over the examples taken so far (JEST, Evans et al. 2024, section 3.2).

For every candidate j, :func:`accumulate` adds what newly taken examples i contribute to it, with
z_ij = scale · ⟨taken_i, rows_j⟩ + bias:

- ``sigmoid``: ``out[j] += Σ_i softplus(z_ij)``;
- ``softmax``: ``out[j] = log(exp(out[j]) + Σ_i exp(z_ij))``.

Work is O(S·B·D) for S new examples and B candidates; memory is one tile, never S·B. Three backends
compute the same to 1e-4 of float64: ``numba`` (float32 on the CPU: one matrix product a tile, then one
pass over it), ``triton`` (CUDA: no tile reaches memory at all) and ``torch`` (any device and dtype).
"""

from importlib.util import find_spec
from typing import Literal, get_args

import torch

from curation.gpu.learnability.tensor import accumulate_torch

Loss = Literal["sigmoid", "softmax"]
Backend = Literal["auto", "numba", "torch", "triton"]

LOSSES: tuple[str, ...] = get_args(Loss)
BACKENDS: tuple[str, ...] = get_args(Backend)
# Seen on two cores: a tile in the second-level caches feeds the matrix product best; larger ones cost it a third.
_TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
_COLUMN_STEP = 128


def accumulate(
    taken: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    loss: Loss,
    scale: float | torch.Tensor = 1.0,
    bias: float | torch.Tensor = 0.0,
    backend: Backend = "auto",
    tile_bytes: int | None = None,
) -> None:
    """Add the newly taken examples' part to every candidate's running sum, in place.

    Nothing is copied to the host and nothing waits for the device.

    Args:
        taken: [S, D] floats, one side of the newly taken examples.
        rows: [B, D], the other side of all candidates; same dtype and device as ``taken``.
        out: float64[B] on that device; 0 (sigmoid) or -inf (softmax) before the first call.
        loss: which sum; see the module's text.
        scale, bias: of the logits; tensors of shape [] on that device are read there.
        backend: ``auto`` takes triton on CUDA where it is installed, numba for CPU tensors of at most
            32 bits, torch for the rest. float16 and bfloat16 are summed in float32.
        tile_bytes: bound on a tile and its upcast rows; default 2 MiB on the CPU, 256 MiB elsewhere
            (but never fewer than 128 columns). Triton writes no tile.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    _check(taken, rows, out)
    chosen = choose_backend(backend, rows)
    if taken.shape[0] == 0 or rows.shape[0] == 0:
        return
    if chosen == "triton":
        from curation.gpu.learnability.kernels import accumulate_triton

        accumulate_triton(taken, rows, out, loss=loss, scale=scale, bias=bias)
        return
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    budget = tile_bytes or _TILE_BYTES.get(rows.device.type, _TILE_BYTES["cuda"])
    width = _tile_width(taken.shape[0], rows.shape[1], rows.dtype != dtype, dtype, budget)
    if chosen == "numba":
        from curation.gpu.learnability.cpu import accumulate_numba

        accumulate_numba(taken, rows, out, loss=loss, scale=float(scale), bias=float(bias), width=width)
        return
    accumulate_torch(taken.detach().to(dtype), rows, out, loss=loss, scale=scale, bias=bias, width=width)


def scratch_bytes(
    taken: int, rows: int, width: int, dtype: torch.dtype, *, backend: str, tile_bytes: int | None = None
) -> int:
    """The most memory that a call of :func:`accumulate` needs beside its arguments, in bytes.

    Args:
        taken, rows, width: S, B and D.
        dtype: of the embeddings.
        backend: ``"triton"`` or ``"torch"``.
        tile_bytes: as the call's; None is the default off the CPU.

    Raises:
        ValueError: the backend is another one.
    """
    if backend == "triton":
        from curation.gpu.learnability.kernels import groups_of

        # Shares in float32 and in float64, and their sum.
        groups, _ = groups_of(taken, rows)
        return rows * (12 * groups + 8)
    if backend != "torch":
        raise ValueError(f"backend must be torch or triton, not {backend!r}")
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    upcast = dtype != sums
    tile = min(rows, _tile_width(taken, width, upcast, sums, tile_bytes or _TILE_BYTES["cuda"]))
    # The logits, their softplus and that in float64 (which CUDA does without), the upcast rows, and a row of sums.
    return sums.itemsize * (4 * tile * taken + upcast * (tile + taken) * width) + 24 * tile


def own_logits(
    a: torch.Tensor, b: torch.Tensor, *, scale: float | torch.Tensor = 1.0, bias: float | torch.Tensor = 0.0
) -> torch.Tensor:
    """z_jj = scale · ⟨a_j, b_j⟩ + bias, float64[B]; it is not finite wherever row j of either side is not.

    Args:
        a, b: [B, D] floats, both sides of the candidates.
        scale, bias: as in :func:`accumulate`.
    """
    dots = torch.empty(len(a), dtype=torch.float64, device=a.device)
    step = max(1, _TILE_BYTES["cpu"] * 4 // a.shape[1])
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        for start in range(0, len(a), step):
            part = slice(start, start + step)
            dots[part] = torch.linalg.vecdot(a[part].to(dtype), b[part].to(dtype))
        return dots.mul_(scale).add_(bias)


def choose_backend(backend: Backend, rows: torch.Tensor) -> str:
    """The backend that ``auto`` stands for, or the named one where it can run.

    Raises:
        ValueError: an unknown name, or a backend that cannot take this device or dtype.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    on_cpu, wide = rows.device.type == "cpu", rows.dtype == torch.float64
    if backend == "auto":
        if rows.device.type == "cuda" and not wide and find_spec("triton"):
            return "triton"
        return "numba" if on_cpu and not wide else "torch"
    if backend == "numba" and (not on_cpu or wide):
        raise ValueError(f"backend 'numba' takes CPU tensors of at most 32 bits, not {rows.dtype} on {rows.device}")
    if backend == "triton" and wide:
        raise ValueError("backend 'triton' takes tensors of at most 32 bits, not float64: use backend='torch'")
    return backend


def _tile_width(taken: int, width: int, upcast: bool, dtype: torch.dtype, budget: int) -> int:
    columns = budget // (dtype.itemsize * (taken + upcast * width))
    return max(_COLUMN_STEP, columns // _COLUMN_STEP * _COLUMN_STEP)


def _check(taken: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    if taken.ndim != 2 or rows.ndim != 2 or taken.shape[1] != rows.shape[1]:
        raise ValueError(f"taken must be [S, D] and rows [B, D], not {tuple(taken.shape)} and {tuple(rows.shape)}")
    if not rows.dtype.is_floating_point or taken.dtype != rows.dtype or taken.device != rows.device:
        raise ValueError(
            "taken and rows must have one floating dtype and one device, not "
            f"{taken.dtype} on {taken.device} and {rows.dtype} on {rows.device}"
        )
    if out.dtype != torch.float64 or out.shape != rows.shape[:1] or out.device != rows.device:
        raise ValueError(
            f"out must be float64[{len(rows)}] on {rows.device}, not {out.dtype}{list(out.shape)} on {out.device}"
        )
