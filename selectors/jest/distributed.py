"""Candidates of JEST that are spread over the ranks of torch.distributed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from curation.selectors.distributed import Done, together
from curation.selectors.jest.sums import Term


class Kind(NamedTuple):
    """What a model's embeddings must have in common on all ranks."""

    name: str
    width: int
    dtype: torch.dtype
    device: str
    scale: float
    bias: float

    @classmethod
    def of(cls, term: Term) -> "Kind":
        return cls(term.name, term.a.shape[1], term.a.dtype, term.device.type, float(term.scale), float(term.bias))


class Shards:
    """What the ranks exchange in a round: everyone's logits, and the rows that were taken.

    Args:
        terms_here: makes this rank's terms; none where it has no rows.
        empty: makes the term of no rows that stands for a model on such a rank, from its kind.
        shared: what else must be the same on all ranks, compared by its repr.
        group: the process group.

    Raises:
        ValueError: on every rank, where ``terms_here`` raised on any, or any has a row that is not finite, or ranks
            disagree, or none has rows.
        RuntimeError: torch.distributed is not up.
    """

    def __init__(
        self, terms_here: Callable[[], list[Term]], empty: Callable[[Kind], Term], shared: object, group: Any
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("select_distributed needs torch.distributed: call init_process_group first")
        self._group, self._world, rank = group, dist.get_world_size(group), dist.get_rank(group)

        def check() -> Done[list[Term]]:
            terms = terms_here()
            for term in terms:
                term.check_finite()
            facts = (shared, *map(Kind.of, terms)) if terms else None
            return Done(terms, facts, mark=len(terms[0]) if terms else 0)

        self.terms, lengths = together(check, group)
        self._lengths = lengths.tolist()
        self._start = sum(self._lengths[:rank])
        self._length = self._lengths[rank]
        self.size = sum(self._lengths)
        if not self.size:
            raise ValueError("no rank has rows to choose from")
        if 0 in self._lengths:
            kinds: list[Any] = [None] * self._world
            dist.all_gather_object(kinds, [Kind.of(term) for term in self.terms], group=group)
            self.terms = self.terms or [empty(kind) for kind in next(filter(None, kinds))]

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        """float64[size], in rank order."""
        # Collectives want one length on all ranks.
        longest = max(self._lengths)
        padded = logits.new_zeros(longest)
        padded[: self._length] = logits
        parts = [torch.empty_like(padded) for _ in range(self._world)]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:length] for part, length in zip(parts, self._lengths, strict=True)])

    def rows(self, term: Term, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides' embeddings of these positions: each rank fills in its own, and zeros are added to them."""
        local = index - self._start
        held = (local >= 0) & (local < self._length)
        if self._length:
            both = torch.stack(term.rows(local.clamp(0, self._length - 1))).masked_fill_(~held.unsqueeze(1), 0)
        else:
            both = term.a.new_zeros(2, len(index), term.a.shape[1])
        # In float32, since not every backend adds half precision; one summand is not zero, so this is exact.
        wide = both if both.dtype == torch.float64 else both.float()
        dist.all_reduce(wide, group=self._group)
        a, b = wide.to(both.dtype)
        return a, b
