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

WAITING = 1024
"""Steps whose losses may wait on their device, some bytes each, before they are moved to the host."""

_EMPTY = np.empty(0, np.int64), np.empty(0, np.float32)


class RunningLosses:
    """float32[N], NaN where no loss is known. Losses that are not finite count as unknown, and are counted.

    Losses that are held back lie where they were made, so that no step waits for the device; every :data:`WAITING`
    steps they are moved to the host. Where one rank has all examples, they are merged as soon as somebody asks.

    Args:
        size: N.
        sync: ``"step"`` merges losses as they come, ``"epoch"`` at :meth:`synchronize`.
        group: the process group of the ranks; None is the default group.
        owner: the class whose losses they are, as warnings call it.

    Raises:
        ValueError: ``sync`` is neither.
    """

    def __init__(self, size: int, *, sync: str, group: dist.ProcessGroup | None, owner: str) -> None:
        if sync not in SYNCS:
            raise ValueError(f"sync must be one of {', '.join(SYNCS)}, not {sync!r}")
        self._values = np.full(size, np.nan, np.float32)
        self._nonfinite = 0
        self.sync, self.owner = sync, owner
        self._waiting: list[tuple[npt.NDArray[np.int64], Any]] = []
        self._pending: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        self._gather = PairGather(group)

    @property
    def ranks(self) -> int:
        """How many share the examples."""
        return world(self._gather.group)[1]

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """float32[N], the losses that are merged."""
        self._merge_alone()
        return self._values

    @property
    def nonfinite(self) -> int:
        """How many of the losses that are merged were NaN or infinite."""
        self._merge_alone()
        return self._nonfinite

    @property
    def view(self) -> npt.NDArray[np.float32]:
        """``values``, live and not to be written."""
        view = self.values.view()
        view.flags.writeable = False
        return view

    def take(self, positions: npt.NDArray[np.int64], losses: Any) -> int:
        """Record this rank's losses, or hold them back; how many examples all ranks brought in this step.

        Args:
            positions: int64[b].
            losses: [b], a tensor on any device, or an array.
        """
        if self.sync == "epoch":
            # Copies: the caller may write over both.
            tensor = isinstance(losses, torch.Tensor)
            held = losses.detach().to(torch.float32, copy=True) if tensor else np.array(losses, np.float32)
            self._waiting.append((positions.copy(), held))
            if len(self._waiting) >= WAITING:
                self._fetch()
            return len(positions) * self.ranks
        positions, values = self._gather(positions, _on_host(losses))
        self._record(positions, values)
        return len(positions)

    def synchronize(self) -> None:
        """Merge what is held back; collective with ``sync="epoch"``, and nothing otherwise."""
        if self.sync == "epoch":
            held = self._held()
            self._pending = []
            self._record(*self._gather(*held))

    def state(self) -> dict[str, Any]:
        """Copies, as tensors."""
        self._merge_alone()
        indices, losses = self._held()
        return {
            "nonfinite": self._nonfinite,
            "scores": torch.from_numpy(self._values.copy()),
            "pending_indices": torch.from_numpy(indices),
            "pending_losses": torch.from_numpy(losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; raises ``ValueError`` where it is for another N."""
        values = restored(state["scores"], np.float32)
        if values.shape != self._values.shape:
            raise ValueError(f"scores has shape {values.shape}, not {self._values.shape}")
        held = restored(state["pending_indices"], np.int64), restored(state["pending_losses"], np.float32)
        if len(held[0]) != len(held[1]):
            raise ValueError(f"pending_losses has {len(held[1])} entries, but pending_indices {len(held[0])}")
        beyond = held[0][(held[0] < 0) | (held[0] >= len(values))]
        if len(beyond):
            raise ValueError(f"pending_indices names example {beyond[0]}, but there are {len(values)}")
        # In place: a sampler may hold a view of them.
        self._values[:] = values
        self._nonfinite = state["nonfinite"]
        self._waiting, self._pending = [], [held] if len(held[0]) else []

    def _merge_alone(self) -> None:
        if (self._waiting or self._pending) and self.ranks == 1:
            self.synchronize()

    def _fetch(self) -> None:
        """Move to the host what waits on its device."""
        if self._waiting:
            indices, losses = zip(*self._waiting, strict=True)
            self._waiting = []
            self._pending.append((np.concatenate(indices), np.concatenate([_on_host(part) for part in losses])))

    def _held(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        self._fetch()
        indices, losses = zip(_EMPTY, *self._pending, strict=True)
        return np.concatenate(indices), np.concatenate(losses)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor on a device belongs to its process.
        self._fetch()
        return self.__dict__

    def _record(self, positions: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> None:
        bad = ~np.isfinite(losses)
        if bad.any():
            if self._nonfinite == 0:
                warnings.warn(
                    f"the loss of example {positions[bad][0]} is {losses[bad][0]}: it stays in training, and takes "
                    f"no part in the mean. {self.owner}.nonfinite counts such losses; this is said once.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self._nonfinite += int(bad.sum())
        # Of a position that repeats, the last one counts: the order is the ranks', so all agree.
        self._values[positions] = np.where(bad, np.float32(np.nan), losses)


def weighted(losses: Any, weights: npt.NDArray[np.float32]) -> Any:
    """``losses`` times float32[b] weights: a tensor on its device, with its gradient, or a numpy array."""
    if isinstance(losses, torch.Tensor):
        # Without non_blocking the host would wait until the device has done all that it was given.
        return losses * torch.from_numpy(weights).to(losses.device, non_blocking=True)
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


def positions_of(indices: Any, losses: Any, size: int) -> npt.NDArray[np.int64]:
    """int64[b], the positions of losses [b], one for each.

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
    return positions


def _on_host(losses: Any) -> npt.NDArray[np.float32]:
    if isinstance(losses, torch.Tensor):
        return np.asarray(losses.detach().float().cpu().numpy())
    return np.asarray(losses, np.float32)
