"""Session machine: which rows a rank gets at a step, and which reports are still missing. Pure: no HTTP, no store.

A session hands out ``epochs`` epochs of a method's selection, in steps counted from 0 over the whole session. Every
batch is a pure function of the session's parameters and the reports of earlier epochs, so that a server that was
killed computes the same again, and a client may ask for any step as often as it likes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Generic, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from curation.selectors.samplers.split import RowSplit
from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered
from curation.service.session.protocols import ChoosingEpoch, E, Epoch, Indices, Keep, Losses, Method, State, Weights
from curation.service.session.segments import LaidOut, Layout, Run, Segment, runs, world_size_of
from curation.service.session.spec import SessionSpec
from curation.service.session.super_batches import SuperBatches

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
    """A step request, however it came. ``wait``: seconds to wait for other ranks at an epoch's end."""

    rank: int
    step: int | None
    reports: Sequence[Report]
    generation: int | None
    wait: float = 0.0


@dataclass(frozen=True)
class EpochRecord:
    """An epoch that was opened. ``missing`` int64[m, 2]: (rank, step) of the epoch before that it went on without."""

    number: int
    first_step: int
    layout: RowSplit
    reweighted: int = 0
    missing: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    segments: Sequence[Segment] = ()

    @cached_property
    def laid_out(self) -> Layout:
        """The epoch's steps, by segments."""
        return Layout(self.layout, self.first_step, self.segments)

    @property
    def end(self) -> int:
        return self.laid_out.end

    @property
    def due_from(self) -> int:
        """The first step whose reports are due: what was not reported before was handed out again from there on."""
        return self.laid_out.parts[-1].first_step

    def expected(self) -> npt.NDArray[np.bool_]:
        """bool[steps, world_size]: which batches from ``due_from`` on have rows, and so which reports are due."""
        return self.laid_out.parts[-1].due()


def record_of(
    spec: SessionSpec,
    segments: Sequence[Segment],
    number: int,
    first_step: int,
    rows: int,
    reweighted: int,
    missing: npt.NDArray[np.int64],
) -> EpochRecord:
    """The record of an epoch of so many rows, in a session with these segments."""
    world_size = world_size_of(number, spec.world_size, segments)
    layout = RowSplit(rows, spec.batch_size, world_size, spec.drop_last)
    own = tuple(segment for segment in segments if segment.epoch == number)
    return EpochRecord(number, first_step, layout, reweighted, missing, own)


class Session(Generic[E]):
    """One session's timeline: the epochs opened so far, the last few of them in memory.

    An epoch of a stateful method is opened by :meth:`opening` once the reports of the one before are in; an epoch of
    any other method is open from the start.
    """

    EPOCHS_IN_MEMORY = 2
    SMALL = 64 << 20
    """Bytes up to which the epoch before the newest stays in memory, for ranks that ask for a step of it again."""

    def __init__(
        self,
        spec: SessionSpec,
        method: Method[E],
        records: list[EpochRecord] | None = None,
        segments: Sequence[Segment] = (),
    ) -> None:
        self.spec = spec
        self.method = method
        self.records = records or []
        self.segments = segments
        self._epochs: dict[int, E] = {}
        self.rows = 0
        # Asked several times a step, and as they are for as long as this object lives.
        self._ranks = max((spec.world_size, *(segment.world_size for segment in segments)))
        self._stateless_steps = 0
        self._any: E | None = None
        if not method.stateful:
            first = method.epoch(0, {})
            self._any = first if method.choosing is not None else None
            self._runs = list(runs(segments, spec.world_size, lambda world_size: steps_over(first, world_size)))
            self._stateless_steps = self.span_of(spec.epochs - 1)[1]
            self.put(0, self.laid_out(0, first))
            self.rows = first.rows

    @property
    def world_size(self) -> int:
        """Ranks of the newest steps."""
        return self.segments[-1].world_size if self.segments else self.spec.world_size

    @property
    def open_epochs(self) -> int:
        """Epochs whose steps can be asked for."""
        return len(self.records) if self.method.stateful else self.spec.epochs

    @property
    def known_steps(self) -> int:
        """Steps of all open epochs."""
        if self.method.stateful:
            return self.records[-1].end if self.records else 0
        return self._stateless_steps

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
                run = self._run(step)
                return run.epoch + (step - run.first_step) // run.steps
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
        run = self._runs[bisect_right(self._runs, epoch, key=attrgetter("epoch")) - 1]
        first = run.first_step + (epoch - run.epoch) * run.steps
        return first, first + run.steps

    def check_rank(self, rank: int, step: int | None = None) -> None:
        """Refuse a rank that the session does not have and never had; that an open step does not have, where one is
        named."""
        ranks = self._ranks if step is None else self.ranks_at(step)
        if not 0 <= rank < ranks:
            where = "" if step is None else f" at step {step}"
            raise Refusal("bad-rank", f"rank {rank} is unknown{where}: the session has ranks 0 to {ranks - 1}{where}")

    def due_from(self, epoch: int) -> int:
        """The first step of an open epoch whose reports are still taken."""
        own = [segment.first_step for segment in self.segments if segment.epoch == epoch]
        return own[-1] if own else self.span_of(epoch)[0]

    def check_report(self, report: Report) -> None:
        """Refuse a report for an unknown step, of another length than its batch, or with a bad loss.

        Raises:
            Refusal: says which.
        """
        where = f"the report of rank {report.rank}, step {report.step}"
        if not 0 <= report.step < self.known_steps:
            raise _bad_report(report, f"{where}: no such step was handed out; {self.open_range}")
        length = self.length(report.rank, report.step)
        if len(report.losses) != length:
            raise _bad_report(report, f"{where} has {len(report.losses)} losses, but the batch had {length} rows")
        bounded = self.method.lowest_loss > -np.inf
        if bounded and (low := report.losses.astype(np.float64) < self.method.lowest_loss).any():
            row = int(np.argmax(low))
            lowest = "negative scores" if self.method.lowest_loss == 0 else f"score below {self.method.lowest_loss:g}"
            raise _bad_report(report, f"{where}: loss {row} is {report.losses[row]}, and this method takes no {lowest}")
        if self.spec.non_finite == "reject" and not np.isfinite(report.losses).all():
            row = int(np.argmin(np.isfinite(report.losses)))
            raise _bad_report(
                report,
                f"{where}: loss {row} is {report.losses[row]} as float32, and this session rejects those. Send finite "
                'losses, or give the session "non_finite": "keep", which takes such a loss as unknown',
            )

    def check_due(self, report: Report) -> None:
        """Refuse a report of a batch whose rows are handed out again, because the session was resized since; what was
        chosen from a super-batch is not."""
        if not self.segments or self.method.choosing is not None:
            return
        if report.step < (resized := self.due_from(self.epoch_of(report.step))):
            raise Refusal(
                "bad-report",
                f"the report of rank {report.rank}, step {report.step}: the session was resized at step {resized}, and "
                "what was not reported before is handed out again from there on",
            )

    def length(self, rank: int, step: int) -> int:
        """Rows of the batch of a rank at an open step."""
        epoch = self.epoch_of(step)
        if self.segments:
            self.check_rank(rank, step)
        if self.method.stateful:
            record = self.records[epoch]
            if self.segments:
                return record.laid_out.length(rank, step)
            start, stop = record.layout.span(rank, step - record.first_step)
            return stop - start
        return self._epoch(epoch).length(rank, step - self.span_of(epoch)[0])

    def epoch(self, number: int) -> E | None:
        """An epoch's order, where it is in memory."""
        return self._epochs.get(number)

    def batch(self, rank: int, step: int, epoch: E | None = None) -> Batch:
        """The batch of a rank at a step of an open epoch; a stateful method's epoch is given, or in memory."""
        number = self.epoch_of(step)
        first, end = self.span_of(number)
        if self.segments:
            self.check_rank(rank, step)
        indices, weights = (epoch or self._epoch(number)).batch(rank, step - first)
        return Batch(indices, weights, number, step, end, step == end - 1 and number == self.spec.epochs - 1)

    def opening(self, number: int, state: State, missing: npt.NDArray[np.int64]) -> tuple[EpochRecord, E]:
        """An epoch, from the state that it starts with. Changes nothing: see :meth:`opened`.

        The number is given because another replica may open the epoch while this one computes it.
        """
        epoch = self.make_epoch(number, state)
        first = self.records[number - 1].end if number else 0
        return record_of(self.spec, self.segments, number, first, epoch.rows, epoch.reweighted, missing), epoch

    def make_epoch(self, number: int, state: State) -> E:
        """An epoch from the state that it starts with, laid out over the ranks it has."""
        return self.laid_out(number, self.method.epoch(number, state))

    def laid_out(self, number: int, epoch: E) -> E:
        """An epoch as its method made it, over the ranks that the session was resized to."""
        if not self.segments or not isinstance(epoch, Ordered):
            return epoch
        whole = epoch.layout.over(world_size_of(number, self.spec.world_size, self.segments))
        first = self.span_of(number)[0] if number < self.open_epochs else self.known_steps
        layout = Layout(whole, first, [segment for segment in self.segments if segment.epoch == number])
        if isinstance(epoch, SuperBatches):
            return cast(E, epoch.laid_out(layout))
        return cast(E, LaidOut(epoch, layout) if layout.segments else epoch.over(whole))

    def trained(self, number: int) -> int:
        """Rows of an open epoch that are trained on: as many, whatever the order."""
        if self._any is not None:
            return cast(ChoosingEpoch, self.laid_out(number, self._any)).trained
        return self.records[number].layout.rows if self.method.stateful else self.rows

    def layout(self, number: int, step: int | None = None) -> Layout:
        """How an open epoch falls into steps and ranks, without the segments that begin after ``step``.

        Raises:
            Refusal: the method's epochs are no orders, and cannot be split anew.
        """
        own = [one for one in self.segments if one.epoch == number and (step is None or one.first_step <= step)]
        if self.method.stateful:
            return Layout(self.records[number].layout, self.records[number].first_step, own)
        epoch: Epoch = self.make_epoch(number, {})
        kind = Ordered if self.method.choosing is None else SuperBatches
        if not isinstance(epoch, kind):
            raise Refusal(
                "other-method", f"a session of {self.spec.method} cannot be resized: its epochs cannot be split anew"
            )
        return Layout(epoch.layout, self.span_of(number)[0], own)

    def ranks_at(self, step: int) -> int:
        """How many ranks share an open step."""
        number = self.epoch_of(step)
        own = [one for one in self.segments if one.epoch == number and one.first_step <= step]
        return own[-1].world_size if own else world_size_of(number, self.spec.world_size, self.segments)

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
        while len(self._epochs) > (1 if self._crowded else self.EPOCHS_IN_MEMORY):
            del self._epochs[next(iter(self._epochs))]

    def move(self, keep: Keep) -> None:
        """Have epochs that take much memory kept elsewhere, before the next one is made."""
        if self._crowded:
            for epoch in self._epochs.values():
                epoch.move(keep)

    def forget_epochs(self) -> None:
        """Let go of the epochs in memory; they are made again where they are asked for."""
        self._epochs.clear()

    @property
    def _crowded(self) -> bool:
        """Whether one epoch has to go before the next comes: only where no rank is still at work on it."""
        return self.spec.on_missing == "wait" and self.method.stateful and self.nbytes > self.SMALL

    def _epoch(self, number: int) -> E:
        if number not in self._epochs:
            self.put(number, self.make_epoch(number, {}))
        return self._epochs[number]

    def _run(self, step: int) -> Run:
        return self._runs[bisect_right(self._runs, step, key=attrgetter("first_step")) - 1]


def steps_over(epoch: Epoch, world_size: int) -> int:
    """Steps of a whole epoch over so many ranks; those it has where it cannot be split anew."""
    return epoch.layout.over(world_size).steps if isinstance(epoch, Ordered) else epoch.steps


def _bad_report(report: Report, detail: str) -> Refusal:
    return Refusal("bad-report", detail, rank=report.rank, step=report.step)
