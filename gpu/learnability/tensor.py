"""The path of :mod:`curation.gpu.learnability` by tensor operations alone: a matrix product for each tile."""

import torch


def accumulate_torch(
    taken: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    loss: str,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    width: int,
) -> None:
    """See :func:`curation.gpu.learnability.accumulate`; ``width`` columns a tile, sums in ``taken``'s dtype."""
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        for start in range(0, len(rows), width):
            part = slice(start, start + width)
            z = torch.mm(taken, rows[part].to(taken.dtype).T).mul_(scale).add_(bias)
            if loss == "sigmoid":
                out[part] += torch.nn.functional.softplus(z, threshold=50).sum(0, dtype=torch.float64)
            else:
                out[part] = torch.logaddexp(out[part], torch.logsumexp(z, 0).double())
