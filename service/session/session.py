"""Session machine: which rows a rank gets at a step, and which reports are still missing. Pure: no HTTP, no store.

A session hands out ``epochs`` epochs of a method's selection, in steps counted from 0 over the whole session. Every
batch is a pure function of the session's parameters and the reports of earlier epochs, so that a server that was
killed computes the same again, and a client may ask for any step as often as it likes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.selectors.samplers.split import RowSplit
from curation.service.errors import Refusal
from curation.service.session.protocols import E, Indices, Losses, Method, State, Weights
from curation.service.session.spec import SessionSpec

LOSS = np.dtype("<f4")
"""How a loss is stored."""


class Batch(NamedTuple):
    """What a step hands out."""

    indices: Indices
    weights: Weights
    epoch: int
    step: int
    epoch_end: int
    end_of_session: bool

    @property
    def end_of_epoch(self) -> bool:
        """Whether the epoch ends with this step."""
        return self.step == self.epoch_end - 1


class Report(NamedTuple):
    """Losses of one rank's batch at a step: float32[n], in the batch's order."""

    rank: int
    step: int
    losses: Losses


class StepRequest(NamedTuple):
    """A step request, however it came."""

    rank: int
    step: int | None
    reports: Sequence[Report]
    generation: int | None


@dataclass(frozen=True)
class EpochRecord:
    """An epoch that was opened. ``missing`` int64[m, 2]: (rank, step) of the epoch before that it went on without."""

    number: int
    first_step: int
    layout: RowSplit
    reweighted: int = 0
    missing: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def end(self) -> int:
        return self.first_step + self.layout.steps

    def expected(self) -> npt.NDArray[np.bool_]:
        """bool[steps, world_size]: which batches have rows, and so which reports are due."""
        due = np.ones((self.layout.steps, self.layout.world_size), bool)
        for rank in range(self.layout.world_size):
            start, stop = self.layout.span(rank, self.layout.steps - 1)
            due[-1, rank] = stop > start
        return due


class Session(Generic[E]):
    """One session's timeline: the epochs opened so far, the last few of them in memory.

    An epoch of a stateful method is opened by :meth:`opening` once the reports of the one before are in; an epoch of
    any other method is open from the start.
    """

    EPOCHS_IN_MEMORY = 2

    def __init__(self, spec: SessionSpec, method: Method[E], records: list[EpochRecord] | None = None) -> None:
        self.spec = spec
        self.method = method
        self.records = records or []
        self._epochs: dict[int, E] = {}
        self.rows = 0
        if not method.stateful:
            self.put(0, method.epoch(0, {}))
            self._constant = self._epochs[0].steps
            self.rows = self._epochs[0].rows

    @property
    def open_epochs(self) -> int:
        """Epochs whose steps can be asked for."""
        return len(self.records) if self.method.stateful else self.spec.epochs

    @property
    def known_steps(self) -> int:
        """Steps of all open epochs."""
        if self.method.stateful:
            return self.records[-1].end if self.records else 0
        return self._constant * self.spec.epochs

    @property
    def open_range(self) -> str:
        """The steps of all open epochs, in words."""
        return f"open steps are 0 to {self.known_steps - 1}" if self.known_steps else "no step is open yet"

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole session; None until the last epoch is open."""
        return self.known_steps if self.open_epochs == self.spec.epochs else None

    @property
    def nbytes(self) -> int:
        """Resident bytes of the epochs in memory."""
        return sum(epoch.nbytes for epoch in self._epochs.values())

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to. It may be the next one, which is not open yet.

        Raises:
            Refusal: the step lies past the session's end, or in an epoch that cannot be opened yet.
        """
        if step < 0:
            raise Refusal("bad-step", f"step {step} is negative: steps count from 0 over the whole session")
        if step < self.known_steps:
            if not self.method.stateful:
                return step // self._constant
            return bisect_right(self.records, step, key=lambda record: record.first_step) - 1
        if self.open_epochs == self.spec.epochs:
            raise Refusal(
                "bad-step",
                f"step {step} is past the end: the session has {self.known_steps} steps, 0 to {self.known_steps - 1}",
                total_steps=self.known_steps,
            )
        if step > self.known_steps:
            raise Refusal(
                "epoch-not-open",
                f"step {step} lies in an epoch that is not open yet: the next step to ask for is {self.known_steps}",
                next_step=self.known_steps,
            )
        return self.open_epochs

    def span_of(self, epoch: int) -> tuple[int, int]:
        """First step of an open epoch, and the step after its last."""
        if self.method.stateful:
            return self.records[epoch].first_step, self.records[epoch].end
        return epoch * self._constant, (epoch + 1) * self._constant

    def check_rank(self, rank: int) -> None:
        """Refuse a rank that the session does not have."""
        if not 0 <= rank < self.spec.world_size:
            raise Refusal("bad-rank", f"rank {rank} is unknown: the session has ranks 0 to {self.spec.world_size - 1}")

    def check_report(self, report: Report) -> None:
        """Refuse a report for an unknown step, of another length than its batch, or with a bad loss.

        Raises:
            Refusal: says which.
        """
        where = f"the report of rank {report.rank}, step {report.step}"
        if not 0 <= report.step < self.known_steps:
            raise Refusal("bad-report", f"{where}: no such step was handed out; {self.open_range}")
        length = self.length(report.rank, report.step)
        if len(report.losses) != length:
            raise Refusal("bad-report", f"{where} has {len(report.losses)} losses, but the batch had {length} rows")
        low = report.losses.astype(np.float64) < self.method.lowest_loss
        if low.any():
            row = int(np.argmax(low))
            lowest = "negative scores" if self.method.lowest_loss == 0 else f"score below {self.method.lowest_loss:g}"
            raise Refusal(
                "bad-report", f"{where}: loss {row} is {report.losses[row]}, and this method takes no {lowest}"
            )
        if self.spec.non_finite == "reject" and not np.isfinite(report.losses).all():
            row = int(np.argmin(np.isfinite(report.losses)))
            raise Refusal(
                "bad-report",
                f"{where}: loss {row} is {report.losses[row]} as float32. Send finite losses, or create the session "
                'with "non_finite": "keep", which takes such a loss as unknown',
            )

    def length(self, rank: int, step: int) -> int:
        """Rows of the batch of a rank at an open step."""
        epoch = self.epoch_of(step)
        if self.method.stateful:
            record = self.records[epoch]
            start, stop = record.layout.span(rank, step - record.first_step)
            return stop - start
        return self._epoch(epoch).length(rank, step - epoch * self._constant)

    def epoch(self, number: int) -> E | None:
        """An epoch's order, where it is in memory."""
        return self._epochs.get(number)

    def batch(self, rank: int, step: int, epoch: E | None = None) -> Batch:
        """The batch of a rank at a step of an open epoch; a stateful method's epoch is given, or in memory."""
        number = self.epoch_of(step)
        first, end = self.span_of(number)
        indices, weights = (epoch or self._epoch(number)).batch(rank, step - first)
        return Batch(indices, weights, number, step, end, step == end - 1 and number == self.spec.epochs - 1)

    def missing(self, epoch: int, ranks: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64[m, 2]: (rank, step), by step, of the reports of an open epoch that are not among those given."""
        record = self.records[epoch]
        due = record.expected()
        due[steps - record.first_step, ranks] = False
        missing = np.argwhere(due)
        return np.stack([missing[:, 1], missing[:, 0] + record.first_step], axis=1)

    def opening(self, number: int, state: State, missing: npt.NDArray[np.int64]) -> tuple[EpochRecord, E]:
        """An epoch, from the state that it starts with. Changes nothing: see :meth:`opened`.

        The number is given because another replica may open the epoch while this one computes it.
        """
        epoch = self.make_epoch(number, state)
        first = self.records[number - 1].end if number else 0
        layout = RowSplit(epoch.rows, self.spec.batch_size, self.spec.world_size, self.spec.drop_last)
        return EpochRecord(number, first, layout, epoch.reweighted, missing), epoch

    def make_epoch(self, number: int, state: State) -> E:
        """An epoch from the state that it starts with."""
        return self.method.epoch(number, state)

    def ranks_at(self, step: int) -> int:
        """How many ranks share an open step."""
        return self.spec.world_size

    def opened(self, record: EpochRecord, epoch: E | None = None) -> None:
        """Take in an epoch that this server opened, or (without its order) another replica."""
        if record.number == len(self.records):
            self.records.append(record)
        if epoch is not None:
            self.put(record.number, epoch)

    def put(self, number: int, epoch: E) -> None:
        """Keep an epoch in memory; the one unused for longest makes room."""
        self._epochs.pop(number, None)
        self._epochs[number] = epoch
        while len(self._epochs) > self.EPOCHS_IN_MEMORY:
            del self._epochs[next(iter(self._epochs))]

    def _epoch(self, number: int) -> E:
        if number not in self._epochs:
            self.put(number, self.make_epoch(number, {}))
        return self._epochs[number]
