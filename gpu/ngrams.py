"""Counts of the 4-grams of bytes that texts share with each of some targets: a sparse product, on any device.

A text's distinct 4-grams are its non-zero entries among the targets' 4-grams; their product with the targets'
0/1 columns counts what is shared. The counts are exact: grams are compared as the 32-bit numbers that they are,
not by hash. They estimate compression: a compressor writes what it has not seen, so of a target after a text it
saves about what the two share.

Cost, for n bytes of texts and T targets that hold V distinct grams: a sort of n 64-bit keys, n·log V steps to
look them up and a row of T numbers read for each distinct gram that a target has. Memory: V·T floats, some 60
bytes for each byte of a block, and the result.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

GRAM = 4
_MISS = 1 << 32


@dataclass(frozen=True, eq=False)
class Grams:
    """The targets, ready to be compared with.

    Args:
        vocabulary: int64[V], their distinct grams, rising.
        held: float32[V + 1, T], 1 where a target holds a gram; the last row is of none.
        sizes: int64[T], how many distinct grams each has.
    """

    vocabulary: torch.Tensor
    held: torch.Tensor
    sizes: torch.Tensor

    @cached_property
    def targets(self) -> int:
        """T."""
        return self.held.shape[1]


def target_grams(data: torch.Tensor, offsets: torch.Tensor) -> Grams:
    """The grams of targets.

    Args:
        data: uint8[n], the targets' bytes one after another; offsets int64[T + 1], where each begins and ends.

    Raises:
        ValueError: offsets do not fit the data.
    """
    owners, grams, new = _distinct(data, offsets)
    owners, grams = owners[new], grams[new]
    vocabulary, columns = torch.unique(grams, return_inverse=True)
    count = len(offsets) - 1
    held = torch.zeros(len(vocabulary) + 1, count, device=data.device)
    held[columns, owners] = 1
    return Grams(vocabulary, held, torch.bincount(owners, minlength=count))


def shared_grams(data: torch.Tensor, offsets: torch.Tensor, targets: Grams) -> tuple[torch.Tensor, torch.Tensor]:
    """How many distinct grams each text shares with each target.

    Nothing waits for the device: sizes do not depend on the data.

    Args:
        data: uint8[n], the texts' bytes one after another; offsets int64[N + 1], where each begins and ends.
        targets: on the same device.

    Returns:
        float32[N, T], whole numbers; and int64[N], how many distinct grams each text has.

    Raises:
        ValueError: offsets do not fit the data.
    """
    _, grams, new = _distinct(data, offsets)
    count = len(targets.vocabulary)
    if count == 0 or len(grams) == 0:
        return torch.zeros(len(offsets) - 1, targets.targets, device=data.device), _per_text(new, offsets)
    entries = torch.searchsorted(targets.vocabulary, grams)
    known = new & (targets.vocabulary[entries.clamp(max=count - 1)] == grams)
    entries = torch.where(known, entries, count)
    shared = torch.nn.functional.embedding_bag(entries, targets.held, offsets, mode="sum", include_last_offset=True)
    return shared, _per_text(new, offsets)


def alignment_terms(
    data: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, targets: Grams, target_sizes: torch.Tensor
) -> torch.Tensor:
    """What ZIP-FIT's alignment (arXiv 2410.18194, section 3) is nearly a weighted sum of.

    With C(x ⊕ t) = C(x) + C(t) - saved, the alignment is the mean over targets of saved / max(C(x), C(t)); and
    what is saved grows with the grams shared, from a constant (a frame's header is written once, not twice).

    Args:
        data, offsets, targets: as :func:`shared_grams`'s.
        sizes: int64[N], C(x); target_sizes: int64[T], C(t).

    Returns:
        float64[N, 2]: the means over t of shared / max(C(x), C(t)), and of 1 / max(C(x), C(t)).
    """
    shared, _ = shared_grams(data, offsets, targets)
    inverse = torch.maximum(sizes[:, None], target_sizes[None, :]).double().reciprocal()
    return torch.stack([(shared * inverse).mean(1), inverse.mean(1)], dim=1)


def _distinct(data: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(text, gram, whether it is the text's first such) of every byte, texts in order and grams rising within.

    The last three bytes of a text begin no gram, and stand at its end.
    """
    if data.dtype != torch.uint8 or data.ndim != 1 or offsets.dtype != torch.int64 or offsets.ndim != 1:
        raise ValueError(
            f"data must be uint8[n] and offsets int64[N + 1], not {data.dtype}{list(data.shape)} and "
            f"{offsets.dtype}{list(offsets.shape)}"
        )
    n = len(data)
    positions = torch.arange(n, device=data.device)
    owner = torch.searchsorted(offsets, positions, right=True) - 1
    gram = torch.zeros(n, dtype=torch.int64, device=data.device)
    for byte in range(GRAM):
        if n > byte:
            gram[: n - byte] |= data[byte:].long() << (8 * byte)
    gram = torch.where(positions + GRAM <= offsets[owner + 1], gram, _MISS)
    # Owner and gram in one key: 33 bits for the gram, so that what is none comes after all that are.
    keys = (owner << 33 | gram).sort().values
    new = torch.ones(n, dtype=torch.bool, device=data.device)
    new[1:] = keys[1:] != keys[:-1]
    gram = keys & ((1 << 33) - 1)
    return keys >> 33, gram, new & (gram != _MISS)


def _per_text(flags: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """int64[N]: how many flags each text's stretch holds."""
    totals = torch.zeros(len(flags) + 1, dtype=torch.int64, device=flags.device)
    torch.cumsum(flags, 0, out=totals[1:])
    return totals[offsets[1:]] - totals[offsets[:-1]]
