"""JEST: which part of a super-batch the next step should learn from, chosen jointly.

Evans et al. 2024, "Data curation via joint example selection further accelerates multimodal learning"
(arXiv 2406.17711), algorithm 1. Of B pairs it takes b = (1 - filter_ratio)·B in rounds; each round draws from
the candidates left with probability proportional to exp(logit), where the logit of a candidate is the
contrastive loss it adds to the batch taken so far: the learner's, less a reference model's.

The losses of a candidate against the batch are running sums, so a round costs only the products with what the
round before took: O(b·B·D) work in all and one tile of memory, where the published pseudocode builds the B×B
losses of both models and adds them up again in each round. The distribution is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.learnability import BACKENDS, LOSSES, Backend, Loss
from curation.pair import Pair
from curation.selection import Selection
from curation.selectors.jest.sums import Term

Criterion = Literal["learnability", "hard", "easy"]
Generator = torch.Generator | np.random.Generator

CRITERIA: dict[Criterion, tuple[int, int]] = {"learnability": (1, -1), "hard": (1, 0), "easy": (0, -1)}
"""How the learner's and the reference's loss enter the logit."""


@dataclass(frozen=True, kw_only=True)
class JEST:
    """Joint example selection from super-batches. The defaults are the paper's.

    Args:
        loss: what the models are trained with: ``sigmoid`` (SigLIP) or ``softmax`` (symmetric InfoNCE).
        filter_ratio: share of the super-batch that is left out, in [0, 1); b = (1 - filter_ratio)·B is rounded
            to the nearest, and is 1 at least.
        chunks: rounds. Their sizes differ by one at most, the larger first; where b < chunks there are b rounds
            of one.
        criterion: ``learnability`` is the learner's loss less the reference's, ``hard`` the learner's alone,
            ``easy`` minus the reference's.
        joint: False draws all b by their own losses alone, ignoring each other: the baseline.
        backend: see :func:`curation.gpu.learnability.accumulate`.
        tile_bytes: memory for the tile of logits in flight; None is 2 MiB on the CPU, 256 MiB on a GPU.

    Raises:
        ValueError: a parameter is out of range.
    """

    loss: Loss = "sigmoid"
    filter_ratio: float = 0.8
    chunks: int = 16
    criterion: Criterion = "learnability"
    joint: bool = True
    backend: Backend = "auto"
    tile_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("criterion", tuple(CRITERIA)), ("backend", BACKENDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not 0 <= self.filter_ratio < 1:
            raise ValueError(f"filter_ratio must lie in [0, 1), not {self.filter_ratio}")
        if self.chunks < 1:
            raise ValueError(f"chunks must be at least 1, not {self.chunks}")
        if self.tile_bytes is not None and self.tile_bytes < 1:
            raise ValueError(f"tile_bytes must be positive, or None for the default, not {self.tile_bytes}")

    def rounds(self, size: int) -> list[int]:
        """How many of ``size`` candidates each round takes; their sum is b."""
        chosen = max(1, round((1 - self.filter_ratio) * size))
        chunks = min(self.chunks, chosen) if self.joint else 1
        return [chosen // chunks + (i < chosen % chunks) for i in range(chunks)]

    def select(self, learner: Pair | None, reference: Pair | None, *, generator: Generator) -> Selection:
        """Choose b of the super-batch's B pairs.

        Args:
            learner: embeddings [B, D] of the model in training; None where the criterion is ``easy``.
            reference: the same rows by the reference model, of any width D; None where it is ``hard``.
            generator: drawn from once a round, B numbers. One on the embeddings' own device saves copies.

        Returns:
            ``indices`` int64[b] into the super-batch, in pick order; ``scores`` the logit (nats) that each was
            drawn at; ``size`` B.

        Raises:
            ValueError: a side that the criterion needs is missing, shapes or devices do not fit, or a row is
                not finite (which names it).
            TypeError: the generator or an array is of another kind.
        """
        terms = self._terms(learner, reference)
        for term in terms:
            if term.device.type == "cpu":
                term.check_finite()
        picks, scores = self._draw(terms, _Local(terms), generator)
        if not bool(torch.isfinite(scores).all()):
            for term in terms:
                term.check_finite()
            raise ValueError("a logit overflowed: scale · ⟨a, b⟩ + bias must fit the embeddings' dtype")
        return Selection(indices=picks.cpu().numpy(), scores=scores.cpu().numpy(), size=len(terms[0]))

    def draw(
        self, learner: Pair | None, reference: Pair | None, *, generator: Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`select`, but (indices int64[b], scores float64[b]) stay on the device.

        With CUDA embeddings and a CUDA generator the host neither waits nor copies, and so cannot check: rows
        that are not finite give scores that are not.
        """
        terms = self._terms(learner, reference)
        return self._draw(terms, _Local(terms), generator)

    def logits(
        self, learner: Pair | None, reference: Pair | None, taken: Sequence[npt.ArrayLike] = ()
    ) -> npt.NDArray[np.float64]:
        """float64[B]: what the next round would draw from, once the rounds in ``taken`` took those positions.

        The entries of positions already taken mean nothing.
        """
        terms = self._terms(learner, reference)
        for picks in taken if self.joint else ():
            index = torch.as_tensor(np.asarray(picks, np.int64), device=terms[0].device)
            for term in terms:
                term.add(*term.rows(index))
        return _total(terms).cpu().numpy()

    def select_distributed(
        self, learner: Pair | None, reference: Pair | None, *, seed: int | Sequence[int], group: Any = None
    ) -> Selection:
        """Choose from a super-batch whose rows are spread over the ranks of torch.distributed. Collective.

        Each rank keeps the running sums of its own rows. A round moves the logits (B floats) and the rows it
        takes, so that no rank ever holds all embeddings: B·(b/B)·D floats a side in all, where gathering the
        embeddings first would move B·D. All ranks end with the same choice.

        Args:
            learner, reference: this rank's rows; shards may differ in length. Position 0 is rank 0's first row.
            seed: the same on all ranks; derive one for each step, such as ``(seed, epoch, step)``.
            group: the process group, None for the default one.

        Returns:
            positions in the whole super-batch, the same on all ranks. Rank r's share may be
            ``indices[r::world_size]``.

        Raises:
            ValueError: as :meth:`select`, on all ranks; or ranks disagree on parameters, seed, widths or scale.
            RuntimeError: torch.distributed is not up.
        """
        from curation.selectors.jest.distributed import Shards

        terms = self._terms(learner, reference)
        shards = Shards(terms, (self, seed), group)
        picks, scores = self._draw(terms, shards, np.random.default_rng(seed))
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("a logit overflowed: scale · ⟨a, b⟩ + bias must fit the embeddings' dtype")
        return Selection(indices=picks.cpu().numpy(), scores=scores.cpu().numpy(), size=shards.size)

    def _terms(self, learner: Pair | None, reference: Pair | None) -> list[Term]:
        terms = []
        for name, pair, sign in zip(
            ("learner", "reference"), (learner, reference), CRITERIA[self.criterion], strict=True
        ):
            if sign and pair is None:
                raise ValueError(f"criterion {self.criterion!r} needs the {name}'s embeddings, not None")
            if sign and pair is not None:
                terms.append(Term(name, pair, sign, loss=self.loss, backend=self.backend, tile_bytes=self.tile_bytes))
        if len({len(term) for term in terms}) > 1:
            raise ValueError(f"learner has {len(terms[0])} rows, but reference has {len(terms[1])}")
        if len({term.device for term in terms}) > 1:
            raise ValueError(f"learner is on {terms[0].device}, but reference is on {terms[1].device}")
        return terms

    def _draw(self, terms: list[Term], where: "Where", generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = self.rounds(where.size)
        device = terms[0].device
        taken = torch.zeros(where.size, dtype=torch.bool, device=device)
        picks, scores = [], []
        for i, size in enumerate(sizes):
            logits = where.gather(_total(terms))
            keys = (logits + _gumbel(where.size, generator, device)).masked_fill_(taken, -torch.inf)
            index = torch.sort(keys, descending=True, stable=True).indices[:size]
            picks.append(index)
            scores.append(logits[index])
            if i + 1 < len(sizes):
                taken.index_fill_(0, index, True)
                for term in terms:
                    term.add(*where.rows(term, index))
        return torch.cat(picks), torch.cat(scores)


class Where(Protocol):
    """Where the candidates are: all here, or spread over ranks."""

    size: int

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        """float64[size]: everyone's logits, from the float64[n] of those here."""

    def rows(self, term: Term, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides' embeddings of the candidates at these positions."""


class _Local:
    def __init__(self, terms: list[Term]) -> None:
        self.size = len(terms[0])

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def rows(self, term: Term, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return term.rows(index)


def _total(terms: list[Term]) -> torch.Tensor:
    total = terms[0].logits()
    return total + terms[1].logits() if len(terms) > 1 else total


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
