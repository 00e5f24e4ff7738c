"""Draw of JEST's rounds: the k largest of logit + Gumbel noise, which is a draw from softmax(logit) one by one."""

from typing import Protocol

import numpy as np
import torch

from curation.selectors.jest.sums import Term

Generator = torch.Generator | np.random.Generator


class Where(Protocol):
    """Where the candidates are: all here, or spread over ranks."""

    size: int

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        """float64[size]: everyone's logits, from the float64[n] of those here."""

    def rows(self, term: Term, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides' embeddings of the candidates at these positions."""


class Local:
    """All candidates are here."""

    def __init__(self, terms: list[Term]) -> None:
        self.size = len(terms[0])

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def rows(self, term: Term, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return term.rows(index)


def draw(sizes: list[int], terms: list[Term], where: Where, generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions int64[b], logits float64[b] that they were drawn at), of rounds of these sizes, in pick order.

    Raises:
        TypeError: the generator is of another kind.
    """
    device = terms[0].device
    taken = torch.zeros(where.size, dtype=torch.bool, device=device)
    picks, scores = [], []
    for i, size in enumerate(sizes):
        logits = where.gather(total(terms))
        keys = (logits + _gumbel(where.size, generator, device)).masked_fill_(taken, -torch.inf)
        index = torch.sort(keys, descending=True, stable=True).indices[:size]
        picks.append(index)
        scores.append(logits[index])
        if i + 1 < len(sizes):
            taken.index_fill_(0, index, True)
            for term in terms:
                term.add(*where.rows(term, index))
    return torch.cat(picks), torch.cat(scores)


def total(terms: list[Term]) -> torch.Tensor:
    """float64[n]: the candidates' logits, of one or two models."""
    first = terms[0].logits()
    return first + terms[1].logits() if len(terms) > 1 else first


def _gumbel(size: int, generator: Generator, device: torch.device) -> torch.Tensor:
    """float64[size] on ``device``: -log E, E exponential. In float32 the extremes, which win, would be coarse."""
    noise: torch.Tensor
    if isinstance(generator, torch.Generator):
        noise = torch.empty(size, dtype=torch.float64, device=generator.device)
        noise.exponential_(generator=generator)
    elif isinstance(generator, np.random.Generator):
        noise = torch.from_numpy(generator.standard_exponential(size))
    else:
        raise TypeError(
            f"generator must be a torch.Generator or a numpy.random.Generator, not {type(generator).__name__}"
        )
    return noise.log_().neg_().to(device, non_blocking=True)
