"""What is done to one block of rows: callables that run anywhere, and leave a file for each block.

A score file is float64[rows], NaN for rows that had been dropped before. The reason of a row that is out is an
int8 code (0: still in), kept for all rows in one ``reason.npy``.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from curation.errors import BadRowError, RecipeError, StepError
from curation.files import atomic
from curation.pipelines.engine.workspace import Stage
from curation.selectors.zipfit import ZipFit
from curation.sources.base import BadRow, Block, Source


@dataclass(frozen=True)
class Check:
    """Read every column of a block once, and write down its bad rows."""

    source: Source
    stage: Stage
    texts: frozenset[str]
    numbers: frozenset[str]
    quarantine: bool

    def __call__(self, block: Block) -> None:
        table, bad = self.source.read(block)
        known = {row.index for row in bad}
        for name in sorted(self.texts):
            bad += self._rows(block, _bad_text(table[name]), f"column {name!r}: text is null or empty", known)
        for name in sorted(self.numbers):
            bad += self._rows(block, _not_finite(table[name]), f"column {name!r}: not a finite number", known)
        write_bad_rows(self.stage, block, bad, quarantine=self.quarantine)

    def _rows(self, block: Block, mask: npt.NDArray[np.bool_], reason: str, known: set[int]) -> list[BadRow]:
        rows = []
        for index in (block.start + np.flatnonzero(mask)).tolist():
            if index not in known:
                known.add(index)
                file, row = self.source.locate(index)
                rows.append(BadRow(index, file, row, reason))
        return rows


class BlockScore(Protocol):
    """Scores of the rows of a block that are still in; ``table`` holds these rows only."""

    def __call__(self, block: Block, table: pa.Table | None) -> npt.NDArray[np.float64]:
        """One float for each row."""


@dataclass(frozen=True)
class ScoreBlock:
    """Score the rows of a block that are still in.

    ``columns`` are what ``score`` reads (None: all of them; none: it gets no table).
    """

    source: Source
    stage: Stage
    reason: Path
    columns: tuple[str, ...] | None
    score: BlockScore
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        scores = np.full(block.rows, np.nan)
        if inside.any():
            scores[inside] = self.score(block, self._read(block, inside))
        bad = [
            BadRow(index, *self.source.locate(index), "the score is not a finite number")
            for index in (block.start + np.flatnonzero(inside & ~np.isfinite(scores))).tolist()
        ]
        write_bad_rows(self.stage, block, bad, quarantine=self.quarantine)
        save(self.stage.piece(block.number), scores)

    def _read(self, block: Block, inside: npt.NDArray[np.bool_]) -> pa.Table | None:
        if self.columns == ():
            return None
        table, _ = self.source.read(block, self.columns)
        return table.filter(pa.array(inside))


@dataclass(frozen=True)
class Alignment:
    """ZIP-FIT's alignment of a text column."""

    zipfit: ZipFit
    column: str

    def __call__(self, block: Block, table: pa.Table | None) -> npt.NDArray[np.float64]:
        assert table is not None
        return self.zipfit.score(table[self.column])


@dataclass(frozen=True)
class ColumnScore:
    """A numeric column as it stands."""

    column: str

    def __call__(self, block: Block, table: pa.Table | None) -> npt.NDArray[np.float64]:
        assert table is not None
        scores: npt.NDArray[np.float64] = table[self.column].cast(pa.float64(), safe=False).to_numpy()
        return scores


@dataclass(frozen=True)
class FunctionScore:
    """The user's function of a table of rows."""

    name: str
    parameters: dict[str, Any]
    path: tuple[str, ...] = field(default=())

    def __call__(self, block: Block, table: pa.Table | None) -> npt.NDArray[np.float64]:
        assert table is not None
        try:
            scores = load_function(self.name, self.path)(table, **self.parameters)
        except Exception as error:
            raise StepError(
                f"score: {self.name} failed on rows {block.start} to {block.start + block.rows - 1}: "
                f"{type(error).__name__}: {error}"
            ) from error
        scores = np.asarray(scores, np.float64)
        if scores.shape != (len(table),):
            raise StepError(
                f"score: {self.name} returned shape {scores.shape} for {len(table)} rows: it must return one "
                "float for each row"
            )
        return scores


@dataclass(frozen=True)
class StoredScore:
    """A score from the ``decisions.arrow`` of an earlier run."""

    decisions: Path
    name: str
    reason: Path

    def __call__(self, block: Block, table: pa.Table | None) -> npt.NDArray[np.float64]:
        with pa.memory_map(str(self.decisions)) as file:
            scores = pa.ipc.open_file(file).get_batch(block.number)[self.name].to_numpy(zero_copy_only=False)
            inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
            return np.array(scores[inside])


@dataclass(frozen=True)
class HashBlock:
    """XXH3-128 of each text of a block, as uint64[rows, 2]."""

    source: Source
    stage: Stage
    column: str

    def __call__(self, block: Block) -> None:
        table, _ = self.source.read(block, (self.column,))
        texts: Iterable[bytes | None] = table[self.column].cast(pa.large_binary()).to_pylist()
        digests = b"".join(xxhash.xxh3_128_digest(text or b"") for text in texts)
        save(self.stage.piece(block.number), np.frombuffer(digests, np.uint64).reshape(-1, 2))


@dataclass(frozen=True)
class GroupBlock:
    """The values of a column, dictionary-encoded, of a block."""

    source: Source
    stage: Stage
    column: str

    def __call__(self, block: Block) -> None:
        table, _ = self.source.read(block, (self.column,))
        values = table.select([self.column])
        with atomic(self.stage.piece(block.number, "arrow")) as path, pa.ipc.new_file(str(path), values.schema) as file:
            file.write_table(values)


def save(path: Path, values: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy``, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def write_bad_rows(stage: Stage, block: Block, bad: Sequence[BadRow], *, quarantine: bool) -> None:
    """Stop at the first bad row, or write them all down as JSON lines.

    Raises:
        BadRowError: there is one, and the recipe does not quarantine.
    """
    bad = sorted(bad, key=lambda row: row.index)
    if bad and not quarantine:
        raise BadRowError(bad[0].file, bad[0].row, bad[0].reason)
    with atomic(stage.piece(block.number, "jsonl")) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in bad)


def load_function(name: str, path: Sequence[str] = ()) -> Any:
    """Import ``module:function``; ``path`` is searched too.

    Raises:
        RecipeError: there is no such module or function.
    """
    sys.path.extend(entry for entry in path if entry not in sys.path)
    module, _, attribute = name.partition(":")
    try:
        function: Any = import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"function {name!r} cannot be imported: {error}") from error
    return function


def _bad_text(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    bad: npt.NDArray[np.bool_] = pc.fill_null(pc.equal(pc.binary_length(column), 0), True).to_numpy()
    return bad


def _not_finite(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    values = column.cast(pa.float64(), safe=False)
    bad: npt.NDArray[np.bool_] = pc.fill_null(pc.invert(pc.is_finite(values)), True).to_numpy()
    return bad


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column can be a score."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
