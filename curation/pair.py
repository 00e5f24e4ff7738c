"""Pairs: the two sides of a contrastive model's output, as JEST's selector takes them."""

from dataclasses import dataclass
from typing import Any, SupportsFloat


@dataclass(frozen=True, eq=False)
class Pair:
    """Embeddings of a super-batch's two sides, and the parameters of the loss that reads them.

    Row i of ``a`` and row i of ``b`` are a positive pair; the logits are ``scale · a @ b.T + bias``.

    Args:
        a: [B, D] floats, a torch tensor on any device or a numpy array; as the loss takes them
            (normalised where the loss normalises).
        b: the same shape, kind and device as ``a``.
        scale: the loss's multiplier (exp of its log-temperature): a number, or the model's own tensor of one number,
            with or without a gradient, which stays on its device.
        bias: added to each logit (SigLIP's bias; 0 for InfoNCE), likewise.

    Raises:
        ValueError: shapes differ, are not two-dimensional, or a side is empty.
    """

    a: Any
    b: Any
    scale: SupportsFloat = 1.0
    bias: SupportsFloat = 0.0

    def __post_init__(self) -> None:
        shapes = tuple(self.a.shape), tuple(self.b.shape)
        if shapes[0] != shapes[1]:
            raise ValueError(f"a has shape {shapes[0]}, but b has {shapes[1]}: row i of each is one pair")
        if len(shapes[0]) != 2 or 0 in shapes[0]:
            raise ValueError(f"a and b must have shape [B, D] with B, D ≥ 1, not {shapes[0]}")

    def __len__(self) -> int:
        return int(self.a.shape[0])

    @property
    def factors(self) -> tuple[float, float]:
        """(scale, bias) as numbers; waits for the device that they are on."""
        scale, bias = (float(getattr(factor, "detach", lambda f=factor: f)()) for factor in (self.scale, self.bias))
        return scale, bias
