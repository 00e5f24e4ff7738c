"""Sums of one model's part of JEST's logits, kept up as examples are taken (Evans et al. 2024, algorithm 1)."""

from typing import Any

import numpy as np
import torch

from curation.gpu.learnability import Backend, Loss, accumulate, own_logits
from curation.pair import Pair


class Term:
    """One model's signed part of the logits of its candidates, given the batch taken so far."""

    def __init__(
        self, name: str, pair: Pair, sign: int, *, loss: Loss, backend: Backend, tile_bytes: int | None
    ) -> None:
        self.name, self.sign, self.loss = name, sign, loss
        self.a, self.b = _tensor(pair.a, f"{name}.a"), _tensor(pair.b, f"{name}.b")
        if self.a.dtype != self.b.dtype or self.a.device != self.b.device:
            raise ValueError(
                f"{name}.a is {self.a.dtype} on {self.a.device}, but b is {self.b.dtype} on {self.b.device}"
            )
        self.scale, self.bias = float(pair.scale), float(pair.bias)
        own = own_logits(self.a, self.b, scale=self.scale, bias=self.bias)
        self._options: dict[str, Any] = {
            "loss": loss,
            "scale": self.scale,
            "bias": self.bias,
            "backend": backend,
            "tile_bytes": tile_bytes,
        }
        self.own = own
        self._base = -own
        self._first = True
        if loss == "sigmoid":
            # The sum starts from the candidate's own loss.
            self._sum = torch.nn.functional.softplus(-own, threshold=50)
        else:
            self._columns = torch.full_like(own, -torch.inf)
            self._rows = torch.full_like(own, -torch.inf)

    def __len__(self) -> int:
        return int(self.a.shape[0])  # len() of a tensor takes 10 µs

    @property
    def device(self) -> torch.device:
        return self.a.device

    def rows(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides' embeddings of these candidates."""
        return self.a.index_select(0, index), self.b.index_select(0, index)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Take the examples with these embeddings into the batch: [S, D] each."""
        self._first = False
        if self.loss == "sigmoid":
            accumulate(a, self.b, self._sum, **self._options)
            accumulate(b, self.a, self._sum, **self._options)
        else:
            accumulate(a, self.b, self._columns, **self._options)
            accumulate(b, self.a, self._rows, **self._options)

    def logits(self) -> torch.Tensor:
        """float64[B], signed."""
        if self.loss == "sigmoid":
            return self.sign * self._sum
        if self._first:
            return self.sign * self._base
        return self.sign * (self._base + 0.5 * (self._columns + self._rows))

    def check_finite(self) -> None:
        """Raise ValueError that names the first row with a value that is not finite."""
        bad = torch.nonzero(~torch.isfinite(self.own))
        if len(bad):
            row = int(bad[0, 0])
            for side in ("a", "b"):
                if not bool(torch.isfinite(getattr(self, side)[row]).all()):
                    raise ValueError(
                        f"{self.name}.{side}, row {row}: not finite; {len(bad)} of {len(self)} rows are bad"
                    )
            raise ValueError(
                f"{self.name}, row {row}: its own logit is {float(self.own[row])} "
                f"(scale {self.scale}, bias {self.bias}); it must be finite"
            )


def _tensor(values: Any, name: str) -> torch.Tensor:
    if isinstance(values, np.ndarray):
        # torch warns about memory it could write to: a read-only array is copied.
        values = torch.from_numpy(values if values.flags.writeable else values.copy())
    if not isinstance(values, torch.Tensor) or not values.dtype.is_floating_point:
        kind = f"{values.dtype} tensor" if isinstance(values, torch.Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a torch tensor or numpy array of floats, not {kind}")
    return values.detach()
