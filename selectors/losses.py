"""Running losses: the last loss of every example, brought to all ranks."""

import warnings
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from curation.selection import as_positions
from curation.selectors.distributed import PairGather, world
from curation.selectors.state import restored

Sync = Literal["step", "epoch"]

SYNCS: tuple[str, ...] = get_args(Sync)
"""When several ranks merge their losses: as they come, or at the next epoch's start."""

_EMPTY = np.empty(0, np.int64), np.empty(0, np.float32)


class RunningLosses:
    """float32[N], NaN where no loss is known. Losses that are not finite count as unknown, and are counted.

    Args:
        size: N.
        sync: with several ranks, ``"step"`` merges losses as they come, ``"epoch"`` at :meth:`synchronize`.
        group: the process group of the ranks; None is the default group.
        owner: the class whose losses they are, as warnings call it.

    Raises:
        ValueError: ``sync`` is neither.
    """

    def __init__(self, size: int, *, sync: str, group: dist.ProcessGroup | None, owner: str) -> None:
        if sync not in SYNCS:
            raise ValueError(f"sync must be one of {', '.join(SYNCS)}, not {sync!r}")
        self.values = np.full(size, np.nan, np.float32)
        self.nonfinite = 0
        self.sync, self.owner = sync, owner
        self._pending: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        self._gather = PairGather(group)

    @property
    def ranks(self) -> int:
        """How many share the examples."""
        return world(self._gather.group)[1]

    @property
    def view(self) -> npt.NDArray[np.float32]:
        """``values``, live and not to be written."""
        view = self.values.view()
        view.flags.writeable = False
        return view

    def take(self, positions: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> int:
        """Record this rank's losses, or hold them back; how many examples all ranks brought in this step."""
        if self.sync == "epoch" and self.ranks > 1:
            self._pending.append((positions.copy(), losses.copy()))
            return len(positions) * self.ranks
        positions, losses = self._gather(positions, losses)
        self._record(positions, losses)
        return len(positions)

    def synchronize(self) -> None:
        """Merge what is held back; collective with ``sync="epoch"``, and nothing otherwise."""
        if self.sync == "epoch":
            held = self._held()
            self._pending = []
            self._record(*self._gather(*held))

    def state(self) -> dict[str, Any]:
        """Copies, as tensors."""
        indices, losses = self._held()
        return {
            "nonfinite": self.nonfinite,
            "scores": torch.from_numpy(self.values.copy()),
            "pending_indices": torch.from_numpy(indices),
            "pending_losses": torch.from_numpy(losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; raises ``ValueError`` where it is for another N."""
        values = restored(state["scores"], np.float32)
        if values.shape != self.values.shape:
            raise ValueError(f"scores has shape {values.shape}, not {self.values.shape}")
        held = restored(state["pending_indices"], np.int64), restored(state["pending_losses"], np.float32)
        # In place: a sampler may hold a view of them.
        self.values[:] = values
        self.nonfinite = state["nonfinite"]
        self._pending = [held] if len(held[0]) else []

    def _held(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        indices, losses = zip(_EMPTY, *self._pending, strict=True)
        return np.concatenate(indices), np.concatenate(losses)

    def _record(self, positions: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> None:
        bad = ~np.isfinite(losses)
        if bad.any():
            if self.nonfinite == 0:
                warnings.warn(
                    f"the loss of example {positions[bad][0]} is {losses[bad][0]}: it stays in training, and takes "
                    f"no part in the mean. {self.owner}.nonfinite counts such losses; this is said once.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self.nonfinite += int(bad.sum())
        # Of a position that repeats, the last one counts: the order is the ranks', so all agree.
        self.values[positions] = np.where(bad, np.float32(np.nan), losses)


def weighted(losses: Any, weights: npt.NDArray[np.float32]) -> Any:
    """``losses`` times float32[b] weights: a tensor on its device, with its gradient, or a numpy array."""
    if isinstance(losses, torch.Tensor):
        return losses * torch.from_numpy(weights).to(losses.device)
    return np.asarray(losses) * weights


def checked_positions(indices: Any, size: int) -> npt.NDArray[np.int64]:
    """int64[b] in ``0..size-1``, from a tensor on any device, an array or a list.

    Raises:
        TypeError: indices are not integers.
        ValueError: one is out of range, or they are not one-dimensional.
    """
    positions = as_positions(indices.cpu() if isinstance(indices, torch.Tensor) else indices, "indices")
    if len(positions) and not 0 <= positions.min() <= positions.max() < size:
        bad = positions[(positions < 0) | (positions >= size)][0]
        raise ValueError(f"index {bad} is out of range: there are {size} examples")
    return positions


def checked_losses(indices: Any, losses: Any, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Positions int64[b] and one loss for each, float32[b], as numpy.

    Raises:
        TypeError: indices are not integers.
        ValueError: losses are averaged already or have another shape, or an index is out of range.
    """
    positions = checked_positions(indices, size)
    shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else np.shape(losses)
    if shape == ():
        raise ValueError(
            'losses is a single number: the loss is averaged already. Make it with reduction="none" '
            "(one loss an example), and average what update() returns."
        )
    if shape != positions.shape:
        raise ValueError(
            f"losses has shape {shape}, but indices has {positions.shape}: give one loss an example "
            "(average over tokens or pixels first)"
        )
    if isinstance(losses, torch.Tensor):
        return positions, losses.detach().float().cpu().numpy()
    return positions, np.asarray(losses, np.float32)
