"""Protocols of session methods: what a method, and each of its epochs, must offer to be served."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from curation.service.session.choice import Choice, RankPart

if TYPE_CHECKING:
    from curation.plan import BatchPlan
    from curation.service.session.session import EpochRecord

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float32]
State = Mapping[str, npt.NDArray[Any]]


class Visit(NamedTuple):
    """One handing out of a row: ``step`` counts within the epoch, ``position`` within the rank's batch."""

    step: int
    rank: int
    position: int


class Sliced(Protocol):
    """An array as far as reading a slice of it goes."""

    def __getitem__(self, span: slice, /) -> npt.NDArray[Any]: ...


Keep = Callable[[Iterable[npt.NDArray[Any]]], Sliced]
"""Keeps an array, given piece by piece, out of memory."""


class Epoch(Protocol):
    """One epoch's order, in memory."""

    @property
    def steps(self) -> int:
        """Steps of each rank."""

    @property
    def rows(self) -> int:
        """Rows that the epoch's order holds."""

    @property
    def nbytes(self) -> int:
        """Resident bytes."""

    @property
    def reweighted(self) -> int:
        """Rows whose weight is not 1."""

    def prepare(self) -> None:
        """Make what batches are read from, where that takes long; it happens once, here or at the first batch."""

    def move(self, keep: "Keep") -> None:
        """Have large arrays kept elsewhere, where they are only read a slice at a time from now on."""

    def length(self, rank: int, step: int) -> int:
        """How many losses a report of a batch has; ``step`` counts within the epoch."""

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        """int64[n] positions and float32[n] weights of a batch; ``step`` counts within the epoch."""

    def visits(self, row: int) -> Sequence[Visit]:
        """Where a row is handed out, by step and rank; of a super-batch, to embed it."""


E = TypeVar("E", bound=Epoch)


class Method(Protocol[E]):
    """What a session of one method needs: how it starts, what an epoch is, what reports change."""

    @property
    def stateful(self) -> bool:
        """Whether an epoch depends on the reports of the one before."""

    @property
    def lowest_loss(self) -> float:
        """The lowest loss that is taken; -inf where any is."""

    @property
    def choosing(self) -> "Choosing | None":
        """The method itself where its steps hand out super-batches of which a part is chosen; None for all others."""

    @property
    def plan(self) -> "BatchPlan | None":
        """The plan whose batches are handed out; None where batches are cut from an order."""

    @property
    def whole_from(self) -> int | None:
        """The first epoch that leaves out nothing any more, by the method's own rule; None where it has none."""

    def start(self) -> State:
        """State before the first epoch."""

    def epoch(self, number: int, state: State) -> E:
        """Pure: the same epoch for the same number and state."""

    def check_state(self, state: State, records: Sequence["EpochRecord"]) -> None:
        """Raise ``ValueError`` where a state out of a checkpoint, of the right arrays, holds values that no reports
        lead to after the epochs of ``records``."""

    def fold(self, state: State, epoch: E, reports: Iterable[tuple[Indices, Losses]]) -> State:
        """State after an epoch and its reports, each int64[n] positions and float32[n] losses.

        Arrays of ``state`` that can be written to are the caller's to give: they may come back changed.
        """


class ChoosingEpoch(Epoch, Protocol):
    """An epoch of super-batches. ``length``, of a report, is that of the rank's share of what was chosen."""

    @property
    def trained(self) -> int:
        """Rows of the epoch that are trained on."""

    def bounds(self, step: int) -> tuple[int, int]:
        """Where a step's super-batch starts and stops in the epoch's order, or in what was left of it when the session
        was resized; it stops at the position of its seed."""

    def part(self, rank: int, step: int) -> int:
        """How many rows of a step's super-batch are the rank's to embed or score."""

    def share(self, rank: int, step: int) -> tuple[int, int]:
        """Which of the rows chosen at a step are the rank's to train on, in pick order: start and stop."""

    def super_batch(self, step: int) -> Indices:
        """int64[B]: the rows of all ranks."""


class Choosing(Method[ChoosingEpoch], Protocol):
    """A method without a state whose steps hand out super-batches: what the ranks send of one decides what they train
    on. The choice is a pure function of what was sent and of (seed, epoch, position)."""

    def check(self, part: RankPart, rows: int) -> None:
        """Refuse what a rank sent of its ``rows`` rows unless it fits them and the method.

        Raises:
            Refusal: says what is missing or does not fit.
        """

    def choose(self, parts: Sequence[RankPart], seed: tuple[int, int, int]) -> Choice:
        """Which rows of a super-batch to train on, from what each rank sent of it.

        Raises:
            Refusal: the parts do not fit each other, or nothing can be computed from them.
        """

    def check_choice(self, choice: Choice, epoch: ChoosingEpoch, step: int) -> None:
        """Raise ``ValueError`` where a choice out of a checkpoint cannot be one of this session's."""
