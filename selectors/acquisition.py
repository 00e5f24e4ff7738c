"""Stochastic batch acquisition: draw k candidates by their scores in place of the top k.

Decides: which k of a scored pool to take next. The top k of a score are often near copies of each other; noise
on the scores before ranking gives a batch about as good as BatchBALD's in the time of a sort (Kirsch et al. 2023,
arXiv 2106.12059, section 3). Scores are better the higher they are: those of
:mod:`curation.selectors.uncertainty` all are; negate others first.

Cost: O(N) time and O(k) memory for ``power`` and ``softmax``; ``soft-rank`` sorts. The noise is a pure function
of (seed, position), so shards draw alone and their candidates, merged, are the global draw.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.topk import best, descending_order, keys_of, topk
from curation.gpu.topk.gumbel import Array, Keying, Seed, check_values, noise_seeds
from curation.gpu.topk.order import ranks_by
from curation.selection import Selection

KINDS = ("power", "softmax", "soft-rank")


@dataclass(frozen=True, eq=False)
class Draw:
    """Candidates drawn, in pick order: numpy arrays, or tensors on one device, as the scores were.

    Args:
        indices: int64[k], positions.
        keys: float64[k, 3], descending: the noisy values that were ranked. Only their order means something: by the
            first column, then by the second, then by the third.
        scores: float64[k], the candidates' own scores.
    """

    indices: Array
    keys: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.indices)

    def to_selection(self, size: int | None = None) -> Selection:
        """The same as a :class:`~curation.selection.Selection`, on the host; ``size`` is the pool's N."""
        return Selection(indices=as_numpy(self.indices), scores=as_numpy(self.scores), size=size)


@dataclass(frozen=True, kw_only=True)
class StochasticAcquisition:
    """Draw without replacement, with probabilities that rise with the score (Plackett–Luce).

    With ε ~ Gumbel(0, 1/β) drawn for each candidate, take the k largest of (section 3, table 1)

    - ``power``: log s + ε; the chance of the first pick is proportional to s^β. Scores must not be negative: see
      ``shift``. A zero is never taken before a positive score: where k exceeds the positive ones, zeros follow them,
      uniformly at random.
    - ``softmax``: s + ε; the chance is proportional to exp(β·s).
    - ``soft-rank``: -log r + ε, r the rank of the score from 1, the largest first; the chance is proportional to
      r^-β. Equal scores share their ranks out at random, by the seed, so that none of them is favoured and together
      they weigh what their ranks weigh, however coarsely scores are rounded.

    β = ∞ is exactly the top k, equal scores by position, and needs no seed; however large a smaller β is, equal scores
    are equally likely. β = 0 ignores the scores, zeros and infinities too: a uniform draw. Of power and softmax, a
    score of +inf comes before all finite ones, and one of -inf after them (power refuses it); several, in random
    order. NaN is no score, and refused.

    Args:
        kind: ``"power"``, ``"softmax"`` or ``"soft-rank"``.
        beta: β, from 0 to ∞ inclusive: how strictly the draw follows the scores.
        shift: with ``power``, a number that is added to all scores, or ``"lowest"``: less the lowest score of those
            that are drawn from, which thus counts as 0. The other kinds draw alike whatever is added.

    Raises:
        ValueError: kind is unknown, beta is negative or NaN, or shift is not finite or goes with another kind.
    """

    kind: str = "power"
    beta: float = 1.0
    shift: float | Literal["lowest"] = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not self.beta >= 0:
            raise ValueError(f"beta must be 0 or more (0: uniform, inf: top k), not {self.beta}")
        if isinstance(self.shift, str) and self.shift != "lowest":
            raise ValueError(f'shift must be a number or "lowest", not {self.shift!r}')
        if not isinstance(self.shift, str) and not np.isfinite(self.shift):
            raise ValueError(f"shift must be finite, not {self.shift}")
        if self.shift != 0 and self.kind != "power":
            raise ValueError(f"shift goes with power: {self.kind} draws alike whatever is added to all scores")

    def select(
        self,
        scores: Array,
        k: int,
        *,
        generator: np.random.Generator | torch.Generator | None = None,
        seed: Seed | None = None,
    ) -> Selection:
        """Choose k of N candidates.

        A ``Selection`` holds numpy arrays whatever the scores are, and so copies k rows from a device;
        :meth:`draw` leaves them there.

        Args:
            scores: [N] of real numbers, a numpy array (memory maps too) or a torch tensor on any device; not
                changed.
            k: how many, from 0 to N.
            generator: where the randomness comes from; it moves on.
            seed: integers in place of a generator: the same seed gives the same draw, on numpy arrays and on
                tensors alike.

        Returns:
            k candidates in pick order, ``scores`` their own scores.

        Raises:
            ValueError: k is negative or above N; a score is NaN, or negative after the shift with ``power`` (the
                first is named); both or neither of generator and seed are given; scores are not one-dimensional.
            TypeError: scores are not real numbers.
        """
        return self.draw(scores, k, generator=generator, seed=seed).to_selection(len(scores))

    def draw(
        self,
        scores: Array,
        k: int,
        *,
        generator: np.random.Generator | torch.Generator | None = None,
        seed: Seed | None = None,
    ) -> Draw:
        """:meth:`select`, with the kind and device of ``scores``. Arguments and errors are the same."""
        check_values(scores)
        if k > len(scores):
            raise ValueError(f"k is {k}, but there are only {len(scores)} scores")
        if generator is not None and seed is not None:
            raise ValueError("give a generator or a seed, not both")
        method = self.settled(scores)
        seeds = method._seeds(seed if generator is None else generator)
        ranks = ranks_by(scores, seeds) if seeds and method.needs_ranks else None
        return method._draw(scores, k, seeds, 0, ranks)

    def local(self, scores: Array, k: int, *, seed: Seed | None, start: int = 0, ranks: Array | None = None) -> Draw:
        """One shard's candidates for a global draw: see :meth:`merge`.

        Args:
            scores: [n], the shard's scores, of positions ``start`` to ``start + n - 1``.
            k: how many the global draw takes; a shard of fewer gives all it has.
            seed: the same for every shard, so integers rather than a generator. None with β = ∞.
            start: the position of ``scores[0]``.
            ranks: int64[n], for ``soft-rank`` with 0 < β < ∞: the scores' ranks *among all shards*, so that this
                kind takes two passes: gather the scores (8 bytes each), rank them by
                :func:`curation.gpu.topk.descending_ranks` with the same seed, and hand each shard its part.

        Raises:
            ValueError: ranks are missing or of another length; shift is ``"lowest"``, which a shard does not know (the
                lowest of all shards' scores, negated, is the number to give); and as :meth:`select`.
        """
        return self._draw(scores, k, self._seeds(seed), start, ranks)

    def merge(self, parts: Iterable[Draw], k: int) -> Draw:
        """The global draw from every shard's :meth:`local`: exactly what :meth:`draw` gives on all scores.

        Args:
            parts: the shards' draws for the same k, seed and parameters, in any order, on one device.
            k: how many.

        Raises:
            ValueError: the parts together hold fewer than k, or there are none.
        """
        shards = list(parts)
        held = sum(len(shard) for shard in shards)
        if not shards or held < k:
            raise ValueError(f"the parts hold {held} candidates, but k is {k}")
        join: Any = torch.cat if isinstance(shards[0].keys, torch.Tensor) else np.concatenate
        indices, keys = join([shard.indices for shard in shards]), join([shard.keys for shard in shards])
        order = descending_order(keys, indices)[:k]
        return Draw(indices[order], keys[order], join([shard.scores for shard in shards])[order])

    def keys(self, scores: Array, *, seed: Seed | None, start: int = 0, ranks: Array | None = None) -> Array:
        """float64[n, 3]: the keys a draw ranks, for a caller who chooses among them; see :class:`Draw`.

        Arguments and errors are those of :meth:`local`. The k largest keys, equal ones by position, are the draw.
        """
        values, keying = self._keyed(scores, self._seeds(seed), start, ranks)
        return keys_of(values, keying, start=start)

    def settled(self, scores: Array) -> Self:
        """The same with a number for a shift of ``"lowest"``; it reads these scores, [N], once."""
        if self.shift != "lowest":
            return self
        values = scores.detach() if isinstance(scores, torch.Tensor) else scores
        floats = values.is_floating_point() if isinstance(values, torch.Tensor) else values.dtype.kind == "f"
        # NaN and -inf, which no shift makes 0 or more, are left for the draw to name.
        if not len(values):
            lowest = 0.0
        elif not floats:
            lowest = float(values.min())
        elif isinstance(values, torch.Tensor):
            lowest = float(torch.where(values > -np.inf, values, np.inf).min())
        else:
            lowest = float(values.min(initial=np.inf, where=values > -np.inf))
        return replace(self, shift=-lowest if lowest < np.inf else 0.0)

    def refused(self, scores: Array) -> npt.NDArray[np.bool_]:
        """bool[N]: the scores that a draw would raise for: NaN, and with ``power`` what is negative after the shift."""
        values = np.asarray(as_numpy(scores), np.float64)
        if self.kind != "power":
            return np.isnan(values)
        return np.isnan(values) | (values + float(self.settled(values).shift) < 0)

    @property
    def needs_ranks(self) -> bool:
        """Whether a draw goes by the scores' ranks, which :meth:`local` then must be given."""
        return self.kind == "soft-rank" and 0 < self.beta < np.inf

    def _seeds(self, seed: Seed | None) -> tuple[int, int] | None:
        if self.beta == np.inf:
            return None
        if seed is None:
            raise ValueError("a seed or a generator is needed unless beta is inf: pass one, so that the draw repeats")
        return noise_seeds(seed)

    def _draw(self, scores: Array, k: int, seeds: tuple[int, int] | None, start: int, ranks: Array | None) -> Draw:
        values, keying = self._keyed(scores, seeds, start, ranks)
        indices, keys = best(values, k, keying, start=start)
        return Draw(indices, keys, _as_float64(scores[indices - start]))

    def _keyed(
        self, scores: Array, seeds: tuple[int, int] | None, start: int, ranks: Array | None
    ) -> tuple[Array, Keying]:
        """The values to rank, and how they become keys."""
        check_values(scores)
        if self.shift == "lowest":
            raise ValueError('a shard does not know the lowest of all scores: for shift="lowest" give -lowest')
        if not self.needs_ranks:
            scale = self.beta if seeds else 1.0
            return scores, Keying(scale=scale, log=self.kind == "power", shift=float(self.shift), seeds=seeds)
        if ranks is None:
            raise ValueError("soft-rank needs each score's rank among all shards: pass ranks (descending_ranks)")
        if len(ranks) != len(scores):
            raise ValueError(f"ranks has {len(ranks)} entries, but there are {len(scores)} scores")
        topk(scores, 0, start=start)  # names a NaN
        return ranks, Keying(scale=-self.beta, log=True, seeds=seeds)


def select_above(scores: Array, threshold: float) -> Selection:
    """Every candidate whose score is at least ``threshold``, by position.

    Args:
        scores: [N] of real numbers, a numpy array or a torch tensor.
        threshold: the lowest score that is taken.

    Raises:
        ValueError: a score or the threshold is NaN (the first score is named).
        TypeError: scores are not real numbers.
    """
    if np.isnan(threshold):
        raise ValueError("threshold is NaN")
    topk(scores, 0)
    values = as_numpy(scores)
    indices: npt.NDArray[np.int64] = np.flatnonzero(values >= threshold)
    return Selection(indices=indices, scores=values[indices], size=len(values))


def select_per_group(
    method: StochasticAcquisition,
    scores: Array,
    groups: Array,
    *,
    count: int | None = None,
    fraction: float | None = None,
    seed: Seed | None = None,
) -> Selection:
    """A draw within each group, all groups at once: O(N log N), with no loop over groups; some 100 bytes a candidate.

    Args:
        method: how to draw; ranks of ``soft-rank`` are those within the group.
        scores: [N] of real numbers, a numpy array or a torch tensor; not changed.
        groups: int[N], each candidate's group; any integers.
        count: how many of each group; all of a smaller one.
        fraction: in place of count, the share of each group, from 0 to 1, as :func:`count_of` rounds it.
        seed: integers or a generator; None with β = ∞.

    Returns:
        The chosen of all groups together, by descending key.

    Raises:
        ValueError: both or neither of count and fraction are given, or one is out of range; lengths differ; and
            as :meth:`StochasticAcquisition.select`.
        TypeError: groups are not integers, or scores are not real numbers.
    """
    if (count is None) == (fraction is None):
        raise ValueError("give either count or fraction")
    if count is not None and count < 0:
        raise ValueError(f"count must be 0 or more, not {count}")
    check_values(scores)
    codes = _codes_of(groups)
    if tuple(codes.shape) != (len(scores),):
        raise ValueError(f"groups has shape {tuple(codes.shape)}, but there are {len(scores)} scores")
    method = method.settled(scores)
    seeds = method._seeds(seed)
    ranks: Array | None = None
    if seeds and method.needs_ranks:
        overall = torch.as_tensor(ranks_by(scores, seeds))
        ranks = _ranks_in_groups(overall.argsort(), codes)[0] + 1
        ranks = ranks if isinstance(scores, torch.Tensor) else ranks.numpy()
    drawn = method._draw(scores, len(scores), seeds, 0, ranks)
    order = torch.as_tensor(drawn.indices)
    ranks_within, sizes = _ranks_in_groups(order, codes)
    quotas = sizes.clamp(max=count) if fraction is None else count_of(fraction, sizes)
    chosen = (ranks_within < quotas)[order]
    values = torch.as_tensor(drawn.scores)[chosen]
    return Selection(indices=as_numpy(order[chosen]), scores=as_numpy(values), size=len(scores))


def count_of(fraction: float, size: Any) -> Any:
    """The whole number nearest to ``fraction · size``, halves up, but at least 1 where neither is 0.

    Args:
        fraction: from 0 to 1.
        size: an int, or a tensor of them.

    Returns:
        An int, or an int64 tensor where ``size`` is one.

    Raises:
        ValueError: fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, not {fraction}")
    sizes = torch.as_tensor(size, dtype=torch.int64)
    least = sizes.clamp(max=1) if fraction > 0 else torch.zeros_like(sizes)
    counts = torch.maximum((sizes.double() * fraction + 0.5).floor().long(), least)
    return counts if isinstance(size, torch.Tensor) else int(counts)


def _ranks_in_groups(order: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[N] each candidate's rank in its group, from 0, by an order of all, and int64[N] its group's size."""
    codes = codes.to(order.device)
    order = order[codes[order].argsort(stable=True)]
    sizes = torch.unique_consecutive(codes[order], return_counts=True)[1]
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    ranks, group_sizes = torch.empty_like(order), torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - starts
    group_sizes[order] = sizes.repeat_interleave(sizes)
    return ranks, group_sizes


def _codes_of(groups: Array) -> torch.Tensor:
    """int64[N], a number of each group; unsigned ones above int64 turn negative, and stay distinct."""
    integers = (
        not (groups.is_floating_point() or groups.is_complex())
        if isinstance(groups, torch.Tensor)
        else (np.asarray(groups).dtype.kind in "iub")
    )
    if not integers:
        raise TypeError(f"groups must be integers, not {groups.dtype}")
    return groups.to(torch.int64) if isinstance(groups, torch.Tensor) else torch.from_numpy(np.array(groups, np.int64))


def as_numpy(values: Array) -> npt.NDArray[Any]:
    """An array as it is, or a tensor of any device and type as an array on the host."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    # numpy has no bfloat16.
    return (values.detach().double() if values.is_floating_point() else values).cpu().numpy()


def _as_float64(values: Array) -> Array:
    return values.detach().double() if isinstance(values, torch.Tensor) else np.asarray(values, np.float64)
