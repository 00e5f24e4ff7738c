"""Decisions of a finished dataset: ``decisions.arrow``, read a record batch at a time.

Memory stays that of a record batch: verify, explain, inspect and the report all look at the account through
this module, and none of them holds a Python object for each candidate.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.arrow import take_rows
from curation.dataset.manifest import KEPT, Manifest
from curation.errors import SourceError

_NEVER = np.iinfo(np.int16).max
_REASON = re.compile(r"(\d+)\. ")
_SHARP = ("top-k", "threshold")
_SAMPLE = 100_000

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Where an ``acquire`` step cut the score it chose by.

    Args:
        number: the step, from 1.
        score: the score's name.
        kind: how it chose, as in the recipe.
        value: the threshold; else the lowest score that passed, None where nothing passed.
        sharp: every row at or above ``value`` passed and no row below it (ties at the cut apart).
        passed: rows that passed; ``dropped``: rows that did not.
        per: the column in whose groups it chose, or None.
        beta: coldness of a stochastic draw, None where there was none.
    """

    number: int
    score: str
    kind: str
    value: float | None
    sharp: bool
    passed: int
    dropped: int
    per: str | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of one score.

    Args:
        name: the score.
        edges: float64[bins + 1]; rows beyond the ends are counted in the first and last bin.
        kept: int64[bins], rows that stand in the shards. ``dropped``: int64[bins], the others.
        low, high: the true smallest and largest score.
        beyond: rows outside the edges.
    """

    name: str
    edges: Floats
    kept: Ints
    dropped: Ints
    low: float
    high: float
    beyond: int

    @property
    def rows(self) -> int:
        """Rows that have this score."""
        return int(self.kept.sum() + self.dropped.sum())


@dataclass(frozen=True)
class Standing:
    """Where one row stands in a score among ``of`` rows: ``rank`` 1 is the highest, ties by position."""

    value: float
    rank: int
    of: int

    @property
    def percentile(self) -> float:
        """Share of the other rows that rank below it, in per cent."""
        return 100.0 if self.of == 1 else 100.0 * (self.of - self.rank) / (self.of - 1)


class Decisions:
    """``decisions.arrow`` of a finished dataset, memory-mapped.

    Args:
        path: the file.
        manifest: the dataset's manifest.

    Raises:
        SourceError: the file is missing, is no Arrow IPC file, or lacks a column.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{self.path}: cannot be read: {error}") from error
        missing = [
            name for name in ("index", "kept", "reason", *manifest.scores) if name not in self._reader.schema.names
        ]
        if missing:
            raise SourceError(f"{self.path}: has no column {', '.join(missing)}")

    @property
    def schema(self) -> pa.Schema:
        """Schema of the file."""
        return self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Record batches in source order."""
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            if len(batch):
                yield batch

    @cached_property
    def starts(self) -> Ints:
        """int64[batches + 1], the position at which each record batch starts, and the number of rows."""
        lengths = [self._reader.get_batch(number).num_rows for number in range(self._reader.num_record_batches)]
        return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)

    def at(self, positions: Ints, names: Sequence[str]) -> dict[str, Floats]:
        """Columns as float64 at positions in range, in their order; cheap where neighbours lie close."""
        table = self._take(positions, names)
        return {name: as_floats(table[name]) for name in names}

    def row(self, position: int) -> dict[str, Any] | None:
        """The row of one position, or None where there is no such candidate."""
        return self.rows([position]).get(position)

    def rows(self, positions: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Rows by position; those that are no candidates are left out."""
        known = np.array([position for position in positions if 0 <= position < self.starts[-1]], np.int64)
        return dict(zip(known.tolist(), self._take(known, self.schema.names).to_pylist(), strict=True))

    def counts(self) -> dict[str, int]:
        """Rows by reason, ``"kept"`` first, then in the order of the steps."""
        counts: dict[str, int] = {}
        for batch in self.batches():
            reason = batch.column("reason")
            codes = np.bincount(reason.indices.to_numpy(), minlength=len(reason.dictionary))
            for name, rows in zip(reason.dictionary.to_pylist(), codes.tolist(), strict=True):
                if rows:
                    counts[name] = counts.get(name, 0) + rows
        return dict(sorted(counts.items(), key=lambda item: (item[0] != KEPT, step_of(item[0]), item[0])))

    def cuts(self) -> list[Cut]:
        """What each ``acquire`` step did, from what it let through, in one pass."""
        steps = acquire_steps(self.manifest)
        lowest = dict.fromkeys(steps, np.inf)
        highest = dict.fromkeys(steps, -np.inf)
        passed = dict.fromkeys(steps, 0)
        dropped = dict.fromkeys(steps, 0)
        for batch in self.batches():
            last = last_step(batch)
            for number, step in steps.items():
                score = as_floats(batch.column(step["score"]))
                through, out = last > number, last == number
                passed[number] += int(through.sum())
                dropped[number] += int(out.sum())
                lowest[number] = min(lowest[number], float(np.min(score[through], initial=np.inf)))
                highest[number] = max(highest[number], float(np.max(score[out], initial=-np.inf)))
        return [
            Cut(
                number=number,
                score=step["score"],
                kind=step["kind"],
                value=step["threshold"] if step["kind"] == "threshold" else lowest[number] if passed[number] else None,
                sharp=step["per"] is None and lowest[number] >= highest[number] and step["kind"] in _SHARP,
                passed=passed[number],
                dropped=dropped[number],
                per=step["per"],
                beta=None if step["kind"] in _SHARP or step["beta"] is None else float(step["beta"]),
            )
            for number, step in steps.items()
        ]

    def histograms(self, bins: int) -> list[Histogram]:
        """A histogram of each score that any row has, in two passes."""
        ranges = {name: _range(self, name) for name in self.manifest.scores}
        present = {name: (low, high, ends) for name, (low, high, ends) in ranges.items() if low <= high}
        edges = {name: np.linspace(*ends, bins + 1) for name, (_, _, ends) in present.items()}
        counts = {name: np.zeros((2, bins), np.int64) for name in present}
        beyond = dict.fromkeys(present, 0)
        for batch in self.batches():
            kept = as_bools(batch.column("kept"))
            for name in present:
                score = as_floats(batch.column(name))
                scored = ~np.isnan(score)
                first, last = edges[name][0], edges[name][-1]
                beyond[name] += int(((score[scored] < first) | (score[scored] > last)).sum())
                for side, mask in enumerate((kept, ~kept)):
                    counts[name][side] += np.histogram(np.clip(score[scored & mask], first, last), edges[name])[0]
        return [
            Histogram(name, edges[name], counts[name][0], counts[name][1], low, high, beyond[name])
            for name, (low, high, _) in present.items()
        ]

    def standings(self, row: dict[str, Any], fields: Sequence[tuple[str, int]]) -> list[Standing]:
        """Where a row stands, in one pass.

        Args:
            row: as :meth:`row` gives it.
            fields: pairs of a score that the row has and a step: ranks count the rows that reached that step.
        """
        above = np.zeros(len(fields), np.int64)
        of = np.zeros(len(fields), np.int64)
        for batch in self.batches():
            earlier = batch.column("index").to_numpy() < row["index"]
            last = last_step(batch)
            for field_number, (name, step) in enumerate(fields):
                score = np.where(last >= step, as_floats(batch.column(name)), np.nan)
                of[field_number] += np.count_nonzero(~np.isnan(score))
                above[field_number] += np.count_nonzero((score > row[name]) | ((score == row[name]) & earlier))
        return [
            Standing(row[name], rank + 1, rows)
            for (name, _), rank, rows in zip(fields, above.tolist(), of.tolist(), strict=True)
        ]

    def extremes(self, score: str, number: int, count: int) -> dict[str, list[int]]:
        """Positions worth looking at, by one score: the ``best`` that were kept, the ``worst`` of all that have
        it, and at step ``number`` the lowest that passed (``just in``) and the highest that did not (``just
        out``)."""
        kinds = {"best": -1.0, "just in": 1.0, "just out": -1.0, "worst": 1.0}
        heaps = {kind: _Lowest(count) for kind in kinds}
        for batch in self.batches():
            value = as_floats(batch.column(score))
            index = batch.column("index").to_numpy()
            last = last_step(batch)
            scored = ~np.isnan(value)
            masks = {
                "best": scored & (last == _NEVER),
                "just in": scored & (last > number),
                "just out": scored & (last == number),
                "worst": scored,
            }
            for kind, sign in kinds.items():
                heaps[kind].add(sign * value[masks[kind]], index[masks[kind]])
        return {kind: heap.index.tolist() for kind, heap in heaps.items()}

    def _take(self, positions: Ints, names: Sequence[str]) -> pa.Table:
        """Rows by position in range, in the order asked, of the record batches that hold them."""
        numbers = np.unique(np.searchsorted(self.starts, positions, side="right") - 1).tolist()
        batches = ((int(self.starts[number]), self._reader.get_batch(number).select(names)) for number in numbers)
        return take_rows(positions, pa.schema([self.schema.field(name) for name in names]), batches)


@dataclass
class _Lowest:
    """The ``count`` lowest keys seen; ties by index."""

    count: int
    key: Floats = field(default_factory=lambda: np.empty(0))
    index: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, key: Floats, index: Ints) -> None:
        if len(key) > self.count:
            near = key <= np.partition(key, self.count - 1)[self.count - 1]
            key, index = key[near], index[near]
        key, index = np.concatenate([self.key, key]), np.concatenate([self.index, index])
        order = np.lexsort((index, key))[: self.count]
        self.key, self.index = key[order], index[order]


def _range(decisions: Decisions, name: str) -> tuple[float, float, tuple[float, float]]:
    """Smallest and largest finite score, and the ends of its histogram: the middle 99 % of an even sample where
    a few far values would squeeze everything else into one bar."""
    step = max(1, decisions.manifest.rows_in // _SAMPLE)
    low, high, sample, start = np.inf, -np.inf, [], 0
    for batch in decisions.batches():
        score = as_floats(batch.column(name))
        finite = score[np.isfinite(score)]
        low, high = float(np.min(finite, initial=low)), float(np.max(finite, initial=high))
        sample.append(score[-start % step :: step])
        start += len(score)
    values = np.concatenate([*sample, np.empty(0)])
    values = values[np.isfinite(values)]
    if low > high:
        return low, high, (0.0, 1.0)
    first, last = (low, high) if len(values) < 2 else np.quantile(values, (0.005, 0.995)).tolist()
    if last > first and high - low > 4 * (last - first):
        return low, high, (first, last)
    return low, high, (low, high) if high > low else (low - 0.5, high + 0.5)


def step_of(reason: str) -> int:
    """The last step that a row with this reason reached: 0 for a bad row, and past all of them for a kept one."""
    if reason == KEPT:
        return int(_NEVER)
    match = _REASON.match(reason)
    return int(match[1]) if match else 0


def last_step(batch: pa.RecordBatch) -> npt.NDArray[np.int16]:
    """int16[rows], :func:`step_of` of every row."""
    reason = batch.column("reason")
    steps = np.array([step_of(name) for name in reason.dictionary.to_pylist()], np.int16)
    last: npt.NDArray[np.int16] = steps[reason.indices.to_numpy()]
    return last


def acquire_steps(manifest: Manifest) -> dict[int, dict[str, Any]]:
    """The steps that cut by a score, by number: ``score``, ``kind``, ``threshold``, ``per`` and ``beta`` of each.

    They are the steps whose record has ``kind`` and the name of a ``score`` among its details; where none has, as in
    older manifests, the ``acquire`` steps of the recipe.
    """
    scores = manifest.scores
    cuts = {
        step.number: step.details
        for step in manifest.steps
        if "kind" in step.details and step.details.get("score") in scores
    }
    if not cuts:
        latest = ""
        for number, step in enumerate(manifest.recipe["steps"], 1):
            if step["step"] in ("align", "score"):
                latest = step["name"]
            if step["step"] == "acquire":
                cuts[number] = {**step, "score": step.get("score") or latest}
    return {number: {"per": None, "threshold": None, "beta": None, **cut} for number, cut in cuts.items()}


def as_floats(column: pa.Array | pa.ChunkedArray) -> Floats:
    """float64[rows]; nulls as NaN."""
    values: Floats = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float64, copy=False)


def as_bools(column: pa.Array) -> Bools:
    """bool[rows]."""
    values: Bools = column.to_numpy(zero_copy_only=False)
    return values
