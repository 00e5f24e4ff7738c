"""Sums of one model's part of JEST's logits, kept up as examples are taken (Evans et al. 2024, algorithm 1)."""

from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.learnability import Backend, Loss, accumulate, own_logits


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the sums of a :class:`Term` are made; see :class:`curation.selectors.jest.method.JEST`."""

    loss: Loss
    own_positive: bool
    backend: Backend
    tile_bytes: int | None


class Term:
    """One model's signed part of the logits of its candidates, given the batch taken so far.

    Args:
        name: of the model.
        sign: of its losses.
        a, b: [B, D] floats, both sides of the candidates; B may be 0.
        scale, bias: as in :class:`curation.Pair`.
        form: how its sums are made.

    Raises:
        ValueError: the sides are not of one dtype and device, or scale or bias is no single number.
        TypeError: a side is no tensor or array of floats that torch has.
    """

    def __init__(
        self, name: str, sign: int, a: Any, b: Any, scale: SupportsFloat, bias: SupportsFloat, form: Form
    ) -> None:
        self.name, self.sign, self.loss = name, sign, form.loss
        self.a, self.b = _tensor(a, f"{name}.a"), _tensor(b, f"{name}.b")
        if self.a.dtype != self.b.dtype or self.a.device != self.b.device:
            raise ValueError(
                f"{name}.a is {self.a.dtype} on {self.a.device}, but b is {self.b.dtype} on {self.b.device}"
            )
        self.scale, self.bias = (
            _factor(value, self.device, f"{name}.{kind}") for kind, value in (("scale", scale), ("bias", bias))
        )
        own = own_logits(self.a, self.b, scale=self.scale, bias=self.bias)
        self._options: dict[str, Any] = {
            "loss": form.loss,
            "scale": self.scale,
            "bias": self.bias,
            "backend": form.backend,
            "tile_bytes": form.tile_bytes,
        }
        self.own = own
        self._base = -own
        self._first = True
        if form.loss == "sigmoid":
            # The sum starts from the candidate's own loss.
            self._sum = torch.nn.functional.softplus(-own, threshold=50)
        else:
            self._columns = own.clone() if form.own_positive else torch.full_like(own, -torch.inf)
            self._rows = self._columns.clone()

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
                f"(scale {float(self.scale)}, bias {float(self.bias)}); it must be finite"
            )


def _tensor(values: Any, name: str) -> torch.Tensor:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.itemsize <= 8:
        values = torch.from_numpy(_for_torch(values))
    if not isinstance(values, torch.Tensor) or not values.dtype.is_floating_point:
        kind = values.dtype if isinstance(values, (torch.Tensor, np.ndarray)) else type(values).__name__
        raise TypeError(f"{name} must be a torch tensor or numpy array of floats of at most 64 bits, not {kind}")
    return values.detach()


def _for_torch(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, or a copy where torch cannot read it (or warns, about read-only memory)."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    readable = all(stride >= 0 and stride % values.itemsize == 0 for stride in values.strides)
    return values if readable and values.flags.writeable else values.copy()


def _factor(value: SupportsFloat, device: torch.device, name: str) -> float | torch.Tensor:
    """A number; or, on a device, a tensor of shape [] that stays there, so that nothing waits."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, not a tensor of shape {list(value.shape)}")
        value = value.detach().reshape(())
        if device.type != "cpu" and value.device.type != "cpu":
            return value.to(device)
    return float(value)
