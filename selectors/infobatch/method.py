"""InfoBatch: skip a random share of the examples that are already learned, and reweight the rest.

At each epoch's start an example whose last loss lies below the mean of all is dropped with probability
``prune_ratio``; one that stays weighs 1 / (1 - prune_ratio), so the expected gradient is that of the full
data. The last epochs run on everything. Qin et al. 2024, arXiv 2303.04947, equations 3 to 9.

Cost: an epoch's start is O(N); a step is O(batch). Memory: 5 bytes for each of N candidates (a float32 score
and a byte that says whether it is kept and at which weight), and 4 bytes (8 above 2^31) for each kept one
while its order is in use. So 10^9 candidates take 5 GB, and up to 4 GB more for the order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from curation.gpu.pruning import DROPPED, KEPT
from curation.selection import Selection
from curation.selectors.infobatch.rule import Form, Rule
from curation.selectors.losses import RunningLosses, Sync, checked_positions, positions_of, weighted
from curation.selectors.samplers.split import RowSplit
from curation.selectors.state import check_state

_STATE = (
    *("version", "epoch", "seen", "nonfinite"),
    *("scores", "codes", "weights", "pending_indices", "pending_losses"),
)


class InfoBatch:
    """The last loss of every example, and the epochs that follow from it.

    ::

        info = InfoBatch(size=len(dataset), epochs=90)
        sampler = InfoBatchSampler(info, batch_size=256)
        for batch in DataLoader(Indexed(dataset), batch_sampler=sampler):
            loss = info.update(index, criterion(...)).mean()      # criterion with reduction="none"

    An example without a known loss is never dropped: before its first visit (so epoch 0 prunes nothing), and
    after a loss that was not finite. Such losses are counted in :attr:`nonfinite` and warned of once, and
    take no part in the mean.

    With torch.distributed up, losses reach all ranks, which then derive the same epochs.

    Args:
        size: N, the number of examples; an example is its position ``0..N-1``.
        epochs: E, the number of epochs planned; it decides where annealing starts.
        prune_ratio: r, the probability to drop an example that scores below the threshold, in [0, 1); with
            ``quantiles`` one for each band.
        delta: the share of the epochs that prunes; epochs from ⌊delta · epochs⌋ on run on everything.
        quantiles: None prunes below the mean score. Or thresholds at these quantiles of the scores, rising in
            (0, 1]: ``quantiles=(0.5, 0.8), prune_ratio=(0.75, 0.25)``. Either way a score that equals the threshold
            is not below it, so of equal losses none is pruned: where 90 % are 0, quantiles up to 0.9 prune nothing.
        form: ``"coins"`` drops each by a coin of its own; ``"exact"`` drops ⌊r · n⌋ of the n below the
            threshold and weighs the rest n / n_kept. Both are unbiased; the second varies less.
        seed: epoch e is a function of the scores, the seed and e.
        sync: ``"step"`` brings losses to the host, and to all ranks (one all-gather), in every :meth:`update`, which
            therefore waits for the device; ``"epoch"`` leaves them on their device until the next epoch starts, or
            :meth:`synchronize`.
        group: the process group of the ranks that share the examples; None is the default group.
        device: where an epoch's start is worked out, such as ``"cuda"``; the same on all ranks. What is kept, and
            its weights, are the host's (``form="exact"`` keeps another subset of the same size); the order is
            another one.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        *,
        size: int,
        epochs: int,
        prune_ratio: float | Sequence[float] = 0.5,
        delta: float = 0.875,
        quantiles: Sequence[float] | None = None,
        form: Form = "coins",
        seed: int = 0,
        sync: Sync = "step",
        group: dist.ProcessGroup | None = None,
        device: str | None = None,
    ) -> None:
        self.rule = Rule(
            size=size,
            epochs=epochs,
            prune_ratio=tuple(float(r) for r in np.atleast_1d(prune_ratio)),
            delta=delta,
            quantiles=None if quantiles is None else tuple(float(q) for q in quantiles),
            form=form,
            seed=seed,
            device=device,
        )
        self.size, self.epochs, self.sync = size, epochs, sync
        self.current: int | None = None
        self._losses = RunningLosses(size, sync=sync, group=group, owner="InfoBatch")
        self._codes = np.full(size, KEPT, np.uint8)
        self._weights = self.rule.no_weights()
        self._kept = size
        self._seen = 0

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """float32[N], the last loss of each example, NaN where none is known; a live view, not to be written."""
        return self._losses.view

    @property
    def nonfinite(self) -> int:
        """How many losses were NaN or infinite."""
        return self._losses.nonfinite

    @property
    def annealing_from(self) -> int:
        """The first epoch that runs on everything."""
        return self.rule.annealing_from

    def epoch(self, epoch: int) -> Selection:
        """Begin an epoch, or return it again while it is the current one.

        Returns:
            ``indices`` int64[kept] in the order to visit, ``weights`` float32[kept], ``scores`` float64[kept]
            (the present ones, NaN where unknown).

        Raises:
            ValueError: the epoch is negative.
        """
        indices = self.order(epoch).astype(np.int64)
        return Selection(
            indices=indices,
            weights=self._weights[self._codes[indices]],
            scores=self._losses.values[indices].astype(np.float64),
            size=self.size,
        )

    def order(self, epoch: int) -> npt.NDArray[np.signedinteger]:
        """Begin an epoch as :meth:`epoch` does; only its kept positions, shuffled: int32[kept], or int64."""
        self.begin(epoch)
        return self.rule.order(self._codes, epoch)

    def begin(self, epoch: int) -> None:
        """Decide which examples epoch ``epoch`` keeps, unless it is the current epoch already.

        With ``sync="epoch"`` it is collective: pending losses are merged first.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but is {epoch}")
        if epoch == self.current:
            return
        self.synchronize()
        fates = self.rule.decide(self._losses.values, epoch)
        self._codes, self._weights = fates.codes, fates.weights
        self._kept = int(np.count_nonzero(self._codes))
        self._seen = 0
        self.current = epoch

    def kept(self, epoch: int) -> int:
        """How many examples epoch ``epoch`` has: the current one, or another if it began now. Changes nothing."""
        return self._kept if epoch == self.current else int(np.count_nonzero(self.mask(epoch)))

    def mask(self, epoch: int) -> npt.NDArray[np.bool_]:
        """bool[N]: whether ``epoch`` keeps each example: the current one, or another if it began now.

        Changes nothing; with several ranks and ``sync="epoch"`` call :meth:`synchronize` before, for losses that are
        still held back.
        """
        codes = self._codes if epoch == self.current else self.rule.decide(self._losses.values, epoch).codes
        kept: npt.NDArray[np.bool_] = codes != DROPPED
        return kept

    @overload
    def update(self, indices: Any, losses: torch.Tensor) -> torch.Tensor: ...
    @overload
    def update(self, indices: Any, losses: npt.ArrayLike) -> npt.NDArray[np.floating]: ...
    def update(self, indices: Any, losses: Any) -> Any:
        """Record the losses of a batch and return them weighted; take their ``.mean()`` and go backward.

        The mean of the weighted losses over a batch is what the paper steps along: the mean over kept
        examples of w · ∇loss. An epoch then has fewer steps of the same size.

        Args:
            indices: int[b], positions of this rank's examples (tensor on any device, array or list).
            losses: [b], one loss an example: a torch tensor of any float dtype and device, or an array.
                Gradients flow through it.

        Returns:
            [b], losses · weights, float32 or wider, differentiable where ``losses`` is.

        Raises:
            ValueError: losses are averaged already, shapes differ, or an example is not in this epoch.
            TypeError: indices are not integers.
        """
        positions = positions_of(indices, losses, self.size)
        weights = self.weights(positions)
        self._seen += self._losses.take(positions, losses)
        return weighted(losses, weights)

    def weights(self, indices: Any) -> npt.NDArray[np.float32]:
        """float32[b], the weight of each example in the current epoch.

        Raises:
            ValueError: an index is out of range, or the epoch dropped that example.
        """
        positions = checked_positions(indices, self.size)
        codes = self._codes[positions]
        if not codes.all():
            raise ValueError(
                f"example {positions[codes == DROPPED][0]} is not in epoch {self.current}: its loss would "
                "be credited to an epoch that dropped it. Was the loader's epoch begun before (persistent "
                "workers over a filtered stream), or are these not positions in the dataset?"
            )
        return self._weights[codes]

    def synchronize(self) -> None:
        """Merge losses that ``sync="epoch"`` still holds back; collective, and nothing otherwise.

        Call it on all ranks before saving :meth:`state_dict` in the middle of an epoch.
        """
        self._losses.synchronize()

    def filter(self, items: Iterable[Any], id_of: Callable[[Any], int] | str | int) -> Iterator[tuple[int, Any]]:
        """Of a stream, the items that the current epoch keeps, each with its id; call :meth:`begin` first.

        A worker of a DataLoader holds a copy of this object from the moment it started: leave
        ``persistent_workers`` off, so that each epoch's workers know that epoch.

        Args:
            items: any iterable, in any order; it may be this worker's shard.
            id_of: a stable integer id in ``0..size-1``: a function of the item, or the key to look up in it.
        """
        for item in items:
            index = int(id_of(item) if callable(id_of) else item[id_of])
            if not 0 <= index < self.size:
                raise ValueError(f"id {index} is out of range: InfoBatch was made for size={self.size}")
            if self._codes[index] != DROPPED:
                yield index, item

    def progress(self) -> float:
        """The share of the training that is done, in [0, 1], by examples updated; see :func:`by_progress`."""
        within = min(1.0, self._seen / max(self._kept, 1))
        return min(1.0, ((self.current or 0) + within) / self.epochs)

    def steps_remaining(self, batch_size: int, *, world_size: int | None = None) -> int:
        """Optimizer steps until the last epoch ends: exact for the current epoch, expected for later ones.

        Later epochs are reckoned with the present scores, so ask again at each epoch's start. ``batch_size``
        is one rank's, times the accumulation steps; ``world_size`` None is that of torch.distributed. The last rows of
        an epoch are split as an :class:`InfoBatchSampler` does without a plan and without ``drop_last``.
        """
        ranks = self._losses.ranks if world_size is None else world_size

        def steps(rows: int, done: int = 0) -> int:
            return RowSplit(rows, batch_size, ranks, start=done).steps

        now = self.current or 0
        pruned = sum(self.rule.prunes(epoch) for epoch in range(now + 1, self.epochs))
        full = max(0, self.epochs - now - 1 - pruned)
        share = self.rule.expected_share(self._losses.values)
        left = steps(self._kept, min(self._seen, self._kept))
        return left + pruned * steps(round(share * self.size)) + full * steps(self.size)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything: tensors and plain values, so ``torch.load(weights_only=True)`` reads it."""
        return {
            "version": 1,
            **self.rule.identity(),
            "epoch": self.current,
            "seen": self._seen,
            **self._losses.state(),
            "codes": torch.from_numpy(self._codes.copy()),
            "weights": torch.from_numpy(self._weights.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the number of ranks may differ, and ``epochs`` and ``delta`` may.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        identity = self.rule.identity()
        check_state(state, {*_STATE, *identity}, identity, "InfoBatch")
        fates = self.rule.checked(*(torch.as_tensor(state[name]).cpu().numpy() for name in ("codes", "weights")))
        self._losses.restore(state)
        self._codes, self._weights = fates.codes, fates.weights
        self._kept = int(np.count_nonzero(fates.codes))
        self.current, self._seen = state["epoch"], state["seen"]
