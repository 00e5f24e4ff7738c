"""Losses of all ranks, brought to all ranks: positions stay int64 and losses keep every bit."""

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist


def world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, world size) of torch.distributed; (0, 1) where it is not up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(group), dist.get_world_size(group)
    return 0, 1


class PairGather:
    """Gathers (position, loss) pairs, of different counts on different ranks, in rank order.

    One all-gather of ``int64[1 + 2·capacity]`` a call: the count, the positions and the losses' bits. All
    ranks see all counts, so when one outgrows the capacity all of them notice, and gather once more with
    room for it; with batches of a steady size that happens on the first call alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.capacity = 0

    def __call__(
        self, indices: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """int64[n] and float32[n] of this rank in; the same, of all ranks one after the other, out.

        Collective: every rank calls it, with an empty array where it has nothing.
        """
        size = world(self.group)[1]
        if size == 1:
            return indices, losses
        while True:
            rows = self._exchange(indices, losses, size)
            counts = rows[:, 0]
            if counts.max() <= self.capacity:
                break
            self.capacity = int(counts.max())
        positions = rows[:, 1 : 1 + self.capacity]
        values = rows[:, 1 + self.capacity :].astype(np.int32).view(np.float32)
        present = np.arange(self.capacity) < counts[:, None]
        return positions[present], values[present]

    def _exchange(
        self, indices: npt.NDArray[np.int64], losses: npt.NDArray[np.float32], size: int
    ) -> npt.NDArray[np.int64]:
        row = np.zeros(1 + 2 * self.capacity, np.int64)
        row[0] = len(indices)
        if len(indices) <= self.capacity:
            row[1 : 1 + len(indices)] = indices
            row[1 + self.capacity : 1 + self.capacity + len(indices)] = losses.view(np.int32)
        nccl = dist.get_backend(self.group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        part = torch.from_numpy(row).to(device)
        parts = [torch.empty_like(part) for _ in range(size)]
        dist.all_gather(parts, part, group=self.group)
        return torch.stack(parts).cpu().numpy()

    def __getstate__(self) -> dict[str, int]:
        # A process group belongs to its process; a copy elsewhere uses the default one.
        return {"capacity": 0}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.group, self.capacity = None, state["capacity"]
