"""From rows of neighbours to compressed rows by tensor operations on any device: sorts and gathers.

Each row is sorted once; whether j also names i is a binary search in row j, for all entries at a time. Where both
ends must name each other the entries that remain are in order already; where one is enough the one-way edges are
turned round and all are sorted by (row, column).

O(N·m·log m) time; memory some 50 bytes for each of N·m entries, 100 where one end is enough. The host learns the
number of edges, once, since the result's size depends on it.
"""

from typing import Literal, get_args

import torch

Edges = Literal["mutual", "either"]

EDGES: tuple[str, ...] = get_args(Edges)
"""Which pairs of rows are joined: those that name each other, or those of which one names the other."""


def build_csr(neighbours: torch.Tensor, edges: str = "mutual") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Join i and j where each names the other (``"mutual"``) or where one does (``"either"``).

    Args:
        neighbours: int[N, m], the rows 0..N-1 that each row names; -1 for none. A row's naming itself, or
            another twice, counts for nothing.
        edges: which pairs are joined.

    Returns:
        On the device of ``neighbours``: starts int64[N + 1]; columns int32[E] (int64 where N ≥ 2^31), rising
        within a row, each edge in both of its ends' rows; weights uint8[E], 2 where each names the other, else 1.

    Raises:
        ValueError: the shape or ``edges`` is not allowed, or a neighbour is outside 0..N-1.
        TypeError: neighbours are not integers.
    """
    if edges not in EDGES:
        raise ValueError(f"edges must be one of {', '.join(EDGES)}, not {edges!r}")
    if neighbours.ndim != 2:
        raise ValueError(f"neighbours must have shape [N, m], not {tuple(neighbours.shape)}")
    if neighbours.is_floating_point() or neighbours.is_complex() or neighbours.dtype == torch.bool:
        raise TypeError(f"neighbours must be integers, not {neighbours.dtype}")
    count, width = neighbours.shape
    device = neighbours.device
    kind = torch.int32 if count < 2**31 else torch.int64
    if width == 0 or count == 0:
        return _compressed(
            torch.zeros(count, dtype=torch.int64, device=device),
            torch.empty(0, dtype=kind, device=device),
            torch.empty(0, dtype=torch.uint8, device=device),
        )
    low, high = torch.stack(torch.aminmax(neighbours)).tolist()
    if low < -1 or high >= count:
        raise ValueError(f"neighbours must be rows 0..{count - 1}, or -1 for none")
    ordered = neighbours.to(kind).sort(dim=1).values
    row = torch.arange(count, device=device, dtype=kind)[:, None]
    named = (ordered >= 0) & (ordered != row)
    named[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    both = named & _names_back(ordered)
    if edges == "mutual":
        columns = ordered[both]
        return _compressed(both.sum(1), columns, torch.full_like(columns, 2, dtype=torch.uint8))
    rows, entries = torch.nonzero(named, as_tuple=True)
    others, mutual = ordered[rows, entries].long(), both[rows, entries]
    # Keys are (row, column, both ways): a sort puts the edges in order and carries their weight.
    keys = torch.cat([(rows * count + others) * 2 + mutual, (others * count + rows)[~mutual] * 2]).sort().values
    pairs = keys >> 1
    degrees = torch.bincount(pairs // count, minlength=count)
    return _compressed(degrees, (pairs % count).to(kind), ((keys & 1) + 1).to(torch.uint8))


def _names_back(ordered: torch.Tensor) -> torch.Tensor:
    """bool[N, m]: whether the row that an entry names has this row among its own; entries of -1 mean nothing."""
    count, width = ordered.shape
    flat = ordered.reshape(-1)
    base = ordered.clamp(min=0).long() * width
    row = torch.arange(count, device=ordered.device, dtype=ordered.dtype)[:, None]
    low = torch.zeros_like(base, dtype=torch.int32)
    high = torch.full_like(low, width)
    for _ in range(width.bit_length()):
        middle = (low + high) >> 1
        less = (flat[(base + middle).clamp(max=len(flat) - 1)] < row) & (middle < high)
        low = torch.where(less, middle + 1, low)
        high = torch.where(less, high, middle)
    named_back = flat[(base + low).clamp(max=len(flat) - 1)] == row
    return named_back & (low < width)


def _compressed(
    degrees: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    starts = torch.zeros(len(degrees) + 1, dtype=torch.int64, device=degrees.device)
    torch.cumsum(degrees, 0, out=starts[1:])
    return starts, columns, weights
