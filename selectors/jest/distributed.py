"""Candidates of JEST that are spread over the ranks of torch.distributed."""

from typing import Any

import torch
import torch.distributed as dist

from curation.selectors.jest.sums import Term


class Shards:
    """What the ranks exchange in a round: everyone's logits, and the rows that were taken.

    Args:
        terms: this rank's.
        shared: what must be the same on all ranks, compared by its repr.
        group: the process group.

    Raises:
        ValueError: on every rank, where ranks disagree or any has a row that is not finite.
        RuntimeError: torch.distributed is not up.
    """

    def __init__(self, terms: list[Term], shared: object, group: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("select_distributed needs torch.distributed: call init_process_group first")
        self._group, self._world = group, dist.get_world_size(group)
        rank = dist.get_rank(group)
        problem = None
        try:
            for term in terms:
                term.check_finite()
        except ValueError as error:
            problem = f"rank {rank}: {error}"
        settings = repr((shared, [(t.name, t.a.shape[1], str(t.a.dtype), t.scale, t.bias) for t in terms]))
        ranks: list[Any] = [None] * self._world
        dist.all_gather_object(ranks, (len(terms[0]), settings, problem), group=group)
        problems = [text for _, _, text in ranks if text]
        if problems:
            raise ValueError("; ".join(problems))
        for other, (_, other_settings, _) in enumerate(ranks):
            if other_settings != ranks[0][1]:
                raise ValueError(f"rank {other} disagrees with rank 0: {other_settings} against {ranks[0][1]}")
        self._lengths = [length for length, _, _ in ranks]
        self._start = sum(self._lengths[:rank])
        self._length = self._lengths[rank]
        self.size = sum(self._lengths)

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
        held = ((local >= 0) & (local < self._length)).unsqueeze(1)
        a, b = term.rows(local.clamp(0, self._length - 1))
        both = torch.stack((a, b)).masked_fill_(~held, 0)
        # In float32, since not every backend adds half precision; one summand is not zero, so this is exact.
        wide = both if both.dtype == torch.float64 else both.float()
        dist.all_reduce(wide, group=self._group)
        a, b = wide.to(both.dtype)
        return a, b
