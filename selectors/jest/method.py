"""JEST: which part of a super-batch the next step should learn from, chosen jointly.

Evans et al. 2024, "Data curation via joint example selection further accelerates multimodal learning"
(arXiv 2406.17711), algorithm 1. Of B pairs it takes b = (1 - filter_ratio)·B in rounds; each round draws from
the candidates left with probability proportional to exp(logit), where the logit of a candidate is the
contrastive loss it adds to the batch taken so far: the learner's, less a reference model's.

The losses of a candidate against the batch are running sums, so a round costs only the products with what the
round before took: O(b·B·D) work in all and one tile of memory, where the published pseudocode builds the B×B
losses of both models and adds them up again in each round. The distribution is the same.

With z_ij = scale · ⟨a_i, b_j⟩ + bias and S the batch so far, what j adds to a model's loss is, for

- ``sigmoid``: softplus(-z_jj) + Σ_{i∈S} softplus(z_ij) + Σ_{i∈S} softplus(z_ji);
- ``softmax``: -z_jj + ½ (log Σ_{i∈S} exp z_ij + log Σ_{i∈S} exp z_ji), as the paper's pseudocode has it. Its
  denominators lack j's own positive, so that it has no lower bound, and where z_jj is large it decides alone.
  ``own_positive`` takes the sums over S ∪ {j}: then it is j's InfoNCE loss in the batch S ∪ {j}, never negative.

In the first round, where S is empty, it is softplus(-z_jj) or, in both forms of ``softmax``, -z_jj: the InfoNCE loss
of a pair by itself is 0 and tells nothing.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.learnability import BACKENDS, LOSSES, Backend, Loss
from curation.pair import Pair
from curation.selection import Selection, as_positions, check_distinct
from curation.selectors.jest.draw import Generator, Local, draw, total
from curation.selectors.jest.sums import Form, Term

Criterion = Literal["learnability", "hard", "easy"]

CRITERIA: dict[Criterion, dict[str, int]] = {
    "learnability": {"learner": 1, "reference": -1},
    "hard": {"learner": 1},
    "easy": {"reference": -1},
}
"""Which models' losses enter the logit, and with which sign."""

_OVERFLOW = "a logit overflowed: scale · ⟨a, b⟩ + bias must fit the embeddings' dtype"


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
        own_positive: with ``softmax``, from the second round on, j's own positive stands in its denominators: the
            logit is then of its InfoNCE loss in the batch. The paper's form leaves it out; see the module's text.
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
    own_positive: bool = False
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
        if self.own_positive and self.loss != "softmax":
            raise ValueError(f"own_positive is of loss='softmax': {self.loss!r} has no denominator")
        if self.tile_bytes is not None and self.tile_bytes < 1:
            raise ValueError(f"tile_bytes must be positive, or None for the default, not {self.tile_bytes}")

    def rounds(self, size: int) -> list[int]:
        """How many of ``size`` candidates each round takes; their sum is b."""
        chosen = self.chosen(size)
        chunks = min(self.chunks, chosen) if self.joint else 1
        return [chosen // chunks + (i < chosen % chunks) for i in range(chunks)]

    def chosen(self, size: int) -> int:
        """b, how many of ``size`` candidates are taken."""
        return max(1, round((1 - self.filter_ratio) * size))

    def smallest(self, chosen: int) -> int:
        """The size of the smallest super-batch of which so many candidates are taken."""
        above = int(2 * chosen / (1 - self.filter_ratio)) + 2
        return chosen + bisect_left(range(chosen, above), chosen, key=self.chosen)

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
        picks, scores = self._checked_draw(terms, generator)
        return Selection(indices=picks.cpu().numpy(), scores=scores.cpu().numpy(), size=len(terms[0]))

    def draw(
        self, learner: Pair | None, reference: Pair | None, *, generator: Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`select`, but (indices int64[b], scores float64[b]) stay on the device.

        With CUDA embeddings and a CUDA generator the host neither waits nor copies, and so does not check: a row with a
        NaN is drawn first and its score is NaN, as are most after it. Where you next wait for the device,
        ``scores.isfinite().all()`` tells. On the CPU errors are those of :meth:`select`.
        """
        terms = self._terms(learner, reference)
        if terms[0].device.type == "cpu":
            return self._checked_draw(terms, generator)
        return draw(self.rounds(len(terms[0])), terms, Local(terms), generator)

    def logits(
        self, learner: Pair | None, reference: Pair | None, taken: Sequence[npt.ArrayLike] = ()
    ) -> npt.NDArray[np.float64]:
        """float64[B]: what the next round would draw from, once the rounds in ``taken`` took those positions.

        The entries of positions already taken mean nothing.

        Raises:
            ValueError: as :meth:`select`; or a position in ``taken`` is out of range, or comes twice.
            TypeError: as :meth:`select`; or positions are not integers.
        """
        terms = self._terms(learner, reference)
        rounds = [as_positions(picks, f"taken[{number}]") for number, picks in enumerate(taken)]
        try:
            check_distinct(np.concatenate([np.empty(0, np.int64), *rounds]), len(terms[0]))
        except ValueError as error:
            raise ValueError(f"taken: {error}") from None
        for picks in rounds if self.joint else ():
            index = torch.tensor(np.ascontiguousarray(picks), device=terms[0].device)
            for term in terms:
                term.add(*term.rows(index))
        return total(terms).cpu().numpy()

    def select_distributed(
        self, learner: Pair | None, reference: Pair | None, *, seed: int | Sequence[int], group: Any = None
    ) -> Selection:
        """Choose from a super-batch whose rows are spread over the ranks of torch.distributed. Collective.

        Each rank keeps the running sums of its own rows. A round moves the logits (B floats) and the rows it
        takes, so that no rank ever holds all embeddings: B·(b/B)·D floats a side in all, where gathering the
        embeddings first would move B·D. All ranks end with the same choice.

        Args:
            learner, reference: this rank's rows; shards may differ in length. Position 0 is rank 0's first row. Both
                None on a rank that has no rows.
            seed: the same on all ranks; derive one for each step, such as ``(seed, epoch, step)``.
            group: the process group, None for the default one.

        Returns:
            positions in the whole super-batch, the same on all ranks. Rank r's share may be
            ``indices[r::world_size]``.

        Raises:
            ValueError: on all ranks alike, naming the rank: what :meth:`select` raises (any exception of this rank's
                own arrays is its cause there), or ranks disagree on parameters, seed, widths, dtypes or scale, or no
                rank has rows.
            RuntimeError: torch.distributed is not up.
        """
        from curation.selectors.jest.distributed import Kind, Shards

        def terms() -> list[Term]:
            return [] if learner is None and reference is None else self._terms(learner, reference)

        def empty(kind: Kind) -> Term:
            nothing = torch.empty(0, kind.width, dtype=kind.dtype, device=kind.device)
            return self._term(kind.name, nothing, nothing, kind.scale, kind.bias)

        shards = Shards(terms, empty, (self, seed), group)
        picks, scores = draw(self.rounds(shards.size), shards.terms, shards, np.random.default_rng(seed))
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(_OVERFLOW)
        return Selection(indices=picks.cpu().numpy(), scores=scores.cpu().numpy(), size=shards.size)

    def _terms(self, learner: Pair | None, reference: Pair | None) -> list[Term]:
        terms = []
        for name, pair in (("learner", learner), ("reference", reference)):
            if name in CRITERIA[self.criterion]:
                if pair is None:
                    raise ValueError(f"criterion {self.criterion!r} needs the {name}'s embeddings, not None")
                terms.append(self._term(name, pair.a, pair.b, pair.scale, pair.bias))
        if len({len(term) for term in terms}) > 1:
            raise ValueError(f"learner has {len(terms[0])} rows, but reference has {len(terms[1])}")
        if len({term.device for term in terms}) > 1:
            raise ValueError(f"learner is on {terms[0].device}, but reference is on {terms[1].device}")
        return terms

    def _term(self, name: str, a: Any, b: Any, scale: SupportsFloat, bias: SupportsFloat) -> Term:
        form = Form(loss=self.loss, own_positive=self.own_positive, backend=self.backend, tile_bytes=self.tile_bytes)
        return Term(name, CRITERIA[self.criterion][name], a, b, scale, bias, form)

    def _checked_draw(self, terms: list[Term], generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
        for term in terms:
            if term.device.type == "cpu":
                term.check_finite()
        picks, scores = draw(self.rounds(len(terms[0])), terms, Local(terms), generator)
        if not bool(torch.isfinite(scores).all()):
            for term in terms:
                term.check_finite()
            raise ValueError(_OVERFLOW)
        return picks, scores
