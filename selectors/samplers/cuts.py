"""How an epoch's units are cut into steps of ranks. A unit is an example, or a whole batch."""

from dataclasses import dataclass
from typing import Protocol


class Cut(Protocol):
    """How ``left`` units are cut into steps of ``world`` ranks."""

    def steps(self, left: int, world: int) -> int:
        """The number of steps; all ranks have as many."""

    def share(self, left: int, step: int, rank: int, world: int) -> tuple[int, int, int]:
        """(low, high, end): this rank's units, and the units that all ranks have taken after the step."""


@dataclass(frozen=True)
class Examples:
    """Units are examples. A step is ``batch_size`` of them on each rank.

    The last step shares what is left: rows of ranks then differ by one at most, and nothing is repeated or
    left out. Where fewer examples than ranks are left, they join the step before. ``drop_last`` leaves out
    what does not fill a step.
    """

    batch_size: int
    drop_last: bool = False

    def steps(self, left: int, world: int) -> int:
        full, rest = divmod(left, self.batch_size * world)
        return full + (not self.drop_last and rest >= world)

    def share(self, left: int, step: int, rank: int, world: int) -> tuple[int, int, int]:
        low, size = step * self.batch_size * world, self.batch_size * world
        if not self.drop_last and step == self.steps(left, world) - 1:
            size = left - low
        return low + size * rank // world, low + size * (rank + 1) // world, low + size


@dataclass(frozen=True)
class Batches:
    """Units are batches. A step is one batch on each rank.

    Where they do not divide, the last ones are left out, or with ``repeat`` the first ones fill up.
    """

    repeat: bool = False

    def steps(self, left: int, world: int) -> int:
        return -(-left // world) if self.repeat else left // world

    def share(self, left: int, step: int, rank: int, world: int) -> tuple[int, int, int]:
        unit = (step * world + rank) % left
        return unit, unit + 1, min(left, (step + 1) * world)


@dataclass(frozen=True)
class Rows:
    """Units are batches. A step is one batch, whose rows the ranks share."""

    def steps(self, left: int, world: int) -> int:
        return left

    def share(self, left: int, step: int, rank: int, world: int) -> tuple[int, int, int]:
        return step, step + 1, step + 1
