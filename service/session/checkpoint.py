"""Checkpoint of a session, read from a stranger: nothing in it is believed that a session could not have come to.

An Arrow IPC stream of ``kind``, ``number``, ``rank``, ``data``: a row for each table that came with the session, each
resize, each epoch opened, the state that the present one began with, each report since then (of methods without state
also those of the epoch before), each choice made since then. It is read where it lies, part by part: reports are never
in memory together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.service.arrow import BatchStream, read_batches, read_table
from curation.service.errors import Refusal
from curation.service.session.choice import Choice
from curation.service.session.protocols import State
from curation.service.session.segments import Segment
from curation.service.session.session import LOSS, EpochRecord, Report, Session, record_of
from curation.service.session.spec import MAX_SIZE, SessionSpec
from curation.service.session.super_batches import due_ranks

FORMAT = b"2"
"""Written. ``1``, which is read, too, has a state for a first epoch."""
_FORMATS = (b"1", FORMAT)
SCHEMA = pa.schema([("kind", pa.string()), ("number", pa.int64()), ("rank", pa.int64()), ("data", pa.large_binary())])
_CHOICE_BYTES = 16
"""More than a row of a choice takes, were it compressed."""
_ERRORS = (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError)


class EpochLine(BaseModel):
    """An epoch record, as a checkpoint has it. ``missing``: (rank, step) of the epoch before that it went without."""

    model_config = ConfigDict(extra="forbid", strict=True)

    first_step: int = Field(ge=0, lt=1 << 62)
    rows: int = Field(ge=0, le=MAX_SIZE)
    reweighted: int = Field(ge=0, le=MAX_SIZE)
    missing: list[tuple[int, int]]


@dataclass
class Checkpoint:
    """What a checkpoint says, each part of the right form; :meth:`check` holds it against the session it claims to be.

    Args:
        body: the stream, which ``state``, ``tables`` and ``choices`` are views of.
        max_bytes: what compressed buffers may expand to.
        spec: the session's parameters.
        size: candidates.
        tables: by name, each an Arrow IPC stream.
        segments: how the session was resized.
        records: the epochs opened.
        state: an Arrow IPC stream of what the last of them began with; None before and at the first.
        choices: by step, each an Arrow IPC stream.
        digest: that of the session, as :class:`curation.service.store.SessionRow` has it.
    """

    body: pa.Buffer
    max_bytes: int
    spec: SessionSpec
    size: int
    tables: dict[str, pa.Buffer] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    records: list[EpochRecord] = field(default_factory=list)
    state: pa.Buffer | None = None
    choices: dict[int, pa.Buffer] = field(default_factory=dict)
    digest: str | None = None

    @classmethod
    def read(cls, body: pa.Buffer, max_bytes: int) -> "Checkpoint":
        """The parts of a checkpoint but its reports.

        Raises:
            Refusal: the body is no checkpoint, or expands to more than ``max_bytes``.
        """
        try:
            stream = BatchStream(body, max_bytes)
            metadata = stream.schema.metadata or {}
            if metadata.get(b"format") not in _FORMATS or not stream.schema.equals(SCHEMA):
                raise ValueError(f"its format is {metadata.get(b'format')!r}; this release reads {_FORMATS}")
            spec = SessionSpec.model_validate_json(metadata[b"spec"])
            if not metadata[b"size"].isdigit() or not 1 <= int(metadata[b"size"][:20]) <= MAX_SIZE:
                raise ValueError(f"its size is {metadata[b'size'][:40]!r}")
            checkpoint = cls(body, max_bytes, spec, int(metadata[b"size"]))
            checkpoint.digest = metadata.get(b"digest", b"").decode("latin-1")[:32] or None
            if spec.size not in (None, checkpoint.size):
                raise ValueError(f"its size is {checkpoint.size}, and its parameters say {spec.size}")
            for batch in stream:
                checkpoint._read(batch)
        except _ERRORS as error:
            raise _no_checkpoint(error) from error
        return checkpoint

    def open_tables(self) -> dict[str, pa.Table]:
        """The tables, as a method takes them."""
        return {name: read_table(data, self.max_bytes) for name, data in self.tables.items()}

    def check(self, session: Session[Any]) -> int:
        """Take the epochs into a session that is as its parameters make it, and check all but the reports.

        Returns:
            The present epoch, the first that can be asked for.

        Raises:
            Refusal: says which part is none of this session's.
        """
        try:
            if session.method.stateful:
                self._check_epochs(session)
            elif self.records or self.state is not None:
                raise ValueError(f"method {self.spec.method} has no epochs to restore")
            self._check_segments(session)
            return self._check_choices(session) if self.choices else max(len(self.records) - 1, 0)
        except _ERRORS as error:
            raise _no_checkpoint(error) from error

    def reports(self, session: Session[Any], base: int) -> Iterator[Report]:
        """The reports, each checked, by step and rank; read as they are used.

        Raises:
            Refusal: (while it is iterated over) one is not of the present epoch, does not fit, or is there twice.
        """
        first = session.span_of(base)[0] if session.open_epochs else 0
        last = (-1, -1)
        try:
            for batch in BatchStream(self.body, self.max_bytes):
                reports = np.flatnonzero(batch["kind"].to_numpy(zero_copy_only=False) == "report")
                steps, ranks, data = batch["number"].to_numpy(), batch["rank"].to_numpy(), batch["data"]
                for row in reports:
                    report = Report(int(ranks[row]), int(steps[row]), np.frombuffer(data[row].as_buffer(), LOSS))
                    if (report.step, report.rank) <= last or report.step < first:
                        raise ValueError("its reports are not by step and rank, or lie before its present epoch")
                    session.check_rank(report.rank)
                    session.check_report(report)
                    last = (report.step, report.rank)
                    yield report
        except _ERRORS as error:
            raise _no_checkpoint(error) from error

    def _read(self, batch: pa.RecordBatch) -> None:
        if any(column.null_count for column in batch.columns):
            raise ValueError("a cell is null")
        kinds = batch["kind"].to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(kinds != "report"):
            kind, number, data = str(kinds[row]), batch["number"][row].as_py(), batch["data"][row].as_buffer()
            if kind == "segment" and not self.records:
                self.segments.append(Segment.unpack(batch["rank"][row].as_py(), number, data.to_pybytes()))
            elif kind == "epoch":
                self.records.append(self._record(number, data))
            elif kind == "choice":
                _add(self.choices, number, data)
            elif kind == "state" and self.state is None:
                if number != len(self.records) - 1:
                    raise ValueError(f"its state is of epoch {number}, but {len(self.records)} were opened")
                self.state = data
            elif kind.startswith("table:"):
                _add(self.tables, kind.removeprefix("table:"), data)
            else:
                raise ValueError(f"it has a part {kind[:40]!r} that is unknown, or there twice")

    def _record(self, number: int, data: pa.Buffer) -> EpochRecord:
        line = EpochLine.model_validate_json(data.to_pybytes())
        end = self.records[-1].end if self.records else 0
        if (number, line.first_step) != (len(self.records), end) or number >= self.spec.epochs:
            raise ValueError(f"epoch {number} does not follow the one before")
        if not line.reweighted <= line.rows <= self.size:
            raise ValueError(f"epoch {number} has {line.rows} rows, {line.reweighted} reweighted, of {self.size}")
        missing = np.array(line.missing, np.int64).reshape(-1, 2)
        return record_of(self.spec, self.segments, number, line.first_step, line.rows, line.reweighted, missing)

    def _check_missing(self, before: EpochRecord | None, record: EpochRecord) -> None:
        if not len(record.missing):
            return
        ranks, steps = record.missing.T
        if before is None or steps.min() < before.due_from or steps.max() >= before.end or ranks.min() < 0:
            raise ValueError(f"what epoch {record.number} went without is not of the epoch before")
        part = before.laid_out.parts[-1]
        rising = np.diff(steps) > 0
        rising |= (np.diff(steps) == 0) & (np.diff(ranks) > 0)
        if ranks.max() >= part.split.world_size or not rising.all():
            raise ValueError(
                f"what epoch {record.number} went without is not by step and rank, or of ranks that are unknown"
            )
        spans = (part.split.span(int(rank), part.split.steps - 1) for rank in ranks[steps == before.end - 1])
        if any(start == stop for start, stop in spans):
            raise ValueError(f"epoch {record.number} went without the report of a batch that has no rows")

    def _check_segments(self, session: Session[Any]) -> None:
        """Refuse segments that are not of open epochs, in their order."""
        numbers = [segment.epoch for segment in self.segments]
        if not numbers:
            return
        if numbers != sorted(numbers) or not 0 <= numbers[0] <= numbers[-1] < session.open_epochs:
            raise ValueError("it was resized in epochs that are not open, or not in their order")
        for number in dict.fromkeys(numbers):
            session.layout(number).check()

    def _check_epochs(self, session: Session[Any]) -> None:
        """Compute the present epoch, and refuse a record that says otherwise."""
        if not self.records:
            if self.state is not None:
                raise ValueError("it has a state, but no epoch")
            return
        for before, record in zip((None, *self.records), self.records, strict=False):
            self._check_missing(before, record)
        state, last = session.method.start(), self.records[-1]
        if last.number:
            expected = {name: (values.dtype, values.shape) for name, values in state.items()}
            state = {} if self.state is None else read_state(self.state, self.max_bytes)
            if {name: (values.dtype, values.shape) for name, values in state.items()} != expected:
                raise ValueError(f"the state does not fit: it must have {', '.join(expected)}")
            session.method.check_state(state, self.records[:-1])
        session.records.extend(self.records[:-1])
        record, epoch = session.opening(last.number, state, last.missing)
        if (record.layout, record.reweighted) != (last.layout, last.reweighted):
            raise ValueError(
                f"epoch {last.number} has {last.layout.rows} rows, {last.reweighted} reweighted, but by its state "
                f"{record.layout.rows} and {record.reweighted}"
            )
        session.opened(last, epoch)

    def _check_choices(self, session: Session[Any]) -> int:
        """Refuse choices that are not this session's; the epoch they belong to."""
        method = session.method.choosing
        if method is None:
            raise ValueError(f"method {self.spec.method} has no choices to restore")
        numbers = {session.epoch_of(step) for step in self.choices}
        if len(numbers) > 1:
            raise ValueError("the choices are of several epochs: a checkpoint has those of one")
        number = numbers.pop()
        epoch, first = session.make_epoch(number, {}), session.span_of(number)[0]
        for step, data in self.choices.items():
            ranks = session.ranks_at(step)
            rows = epoch.share(ranks - 1, step - first)[1]
            read_batches(data, _CHOICE_BYTES * rows, rows)
            choice, due = Choice.unpack(data), due_ranks(epoch, step - first, ranks)
            method.check_choice(choice, epoch, step - first)
            if len(choice.digests) != len(due) or any(len(digest) != 16 for digest in choice.digests):
                raise ValueError(f"the choice of step {step} is not of {len(due)} ranks")
        return number


def read_state(data: pa.Buffer, max_bytes: int) -> State:
    """A state out of an Arrow IPC stream of one row, a list for each array; views of ``data``.

    Raises:
        ValueError: it is another.
        Refusal: it is no stream, or expands to more than ``max_bytes``.
    """
    batches = list(BatchStream(data, max_bytes))
    if len(batches) != 1 or batches[0].num_rows != 1:
        raise ValueError("the state must be one row")
    columns: Mapping[str, Any] = dict(zip(batches[0].schema.names, batches[0].columns, strict=True))
    if any(
        not isinstance(column, pa.LargeListArray) or column.null_count or column.flatten().null_count
        for column in columns.values()
    ):
        raise ValueError("the state must be lists without nulls")
    return {name: column.flatten().to_numpy() for name, column in columns.items()}


def _add(parts: dict[Any, pa.Buffer], name: str | int, data: pa.Buffer) -> None:
    if name in parts:
        raise ValueError(f"it has {name!r} twice")
    parts[name] = data


def _no_checkpoint(error: Exception) -> Refusal:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        error = ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return Refusal("bad-body", f"the body is not an exported session: {str(error)[:300]}")
