"""Vectors of a column, block by block: from a teacher, or as they stand in the source.

A block's vectors are float32[rows, D] in one Arrow file a column, zero where a row had been dropped before; a block
without a row that is still in has no file. Vectors
that are zero or not finite make their row a bad row: such a row would be as near to every other, or to none.

Cost: one pass over the texts, and on disk 4·D bytes for each row and column. ``tfidf`` is fitted on a sample of at
most 20,000 rows, of at most 64 blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import StepError
from curation.pipelines.blocks import write_bad_rows
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.matrices import save_matrices
from curation.pipelines.steps.teachers import Float32, Teacher, Tfidf, load_teacher
from curation.recipe import Embed
from curation.sources.base import BadRow, Block, Source

SAMPLE_ROWS = 20_000
SAMPLE_BLOCKS = 64


@dataclass(frozen=True)
class FitTfidf:
    """Fit the ``tfidf`` teacher on a sample of the rows that are still in: the columns share one space."""

    source: Source
    blocks: Sequence[Block]
    stage: Stage
    reason: Path
    step: Embed
    seed: int

    def __call__(self) -> None:
        rng = np.random.default_rng((self.seed, 5))
        inside = np.load(self.reason, mmap_mode="r") == 0
        there = [block for block in self.blocks if inside[block.start : block.start + block.rows].any()]
        some = np.sort(rng.permutation(len(there))[:SAMPLE_BLOCKS])
        texts: list[str] = []
        for number in some.tolist():
            block = there[number]
            rows = np.flatnonzero(inside[block.start : block.start + block.rows])
            rows = np.sort(rng.permutation(rows)[: -(-SAMPLE_ROWS // len(some))])
            table, _ = self.source.read(block, self.step.columns)
            for name in self.step.columns:
                texts += _prompted(table[name].take(pa.array(rows)), self.step.prompts.get(name))
        Tfidf.fit(texts, self.step.dimensions, self.seed).save(self.stage.folder)


@dataclass
class EmbedBlock:
    """Embed the rows of a block that are still in. ``columns`` has the stage of each column's vectors."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    reason: Path
    step: Embed
    quarantine: bool
    path: tuple[str, ...] = ()
    _teacher: Teacher | None = field(default=None, repr=False)

    def __call__(self, block: Block) -> None:
        if self._teacher is None:
            self._teacher = load_teacher(self.step, self.stage.folder, self.path)
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        vectors = {name: np.zeros((0, 0), np.float32) for name in self.columns}
        if inside.any():
            table, _ = self.source.read(block, tuple(self.columns))
            table = table.filter(pa.array(inside))
            for name in self.columns:
                vectors[name] = self._teacher(_prompted(table[name], self.step.prompts.get(name)))
        _write(self.source, self.stage, self.columns, block, inside, vectors, "the teacher's vector", self.quarantine)


@dataclass(frozen=True)
class CopyVectors:
    """Take the vectors of a block from columns of the source."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    widths: Mapping[str, int]
    reason: Path
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        table, _ = self.source.read(block, tuple(self.columns))
        table = table.filter(pa.array(inside))
        vectors = {name: _lists(table[name], self.widths[name]) for name in self.columns}
        _write(self.source, self.stage, self.columns, block, inside, vectors, "the vector", self.quarantine)


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds vectors: lists of floats, of fixed size or not."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def vector_width(source: Source, blocks: Sequence[Block], column: str) -> int:
    """D of a column of vectors: that of its type, or of its first row that is not null.

    Raises:
        StepError: no row has a vector.
    """
    kind = source.schema.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for block in blocks:
        lengths = source.read(block, (column,))[0][column].combine_chunks().value_lengths().drop_null()
        if len(lengths) and lengths[0].as_py():
            return int(lengths[0].as_py())
    raise StepError(f"column {column!r} holds no vector")


def _lists(column: pa.ChunkedArray, width: int) -> Float32:
    """float32[rows, width]; a row of NaN for what is null or of another length."""
    values = column.combine_chunks()
    out = np.full((len(values), width), np.nan, np.float32)
    if pa.types.is_fixed_size_list(values.type):
        good = values.is_valid().to_numpy(zero_copy_only=False)
    else:
        good = values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) == width
    flat = values.filter(pa.array(good)).flatten()
    out[good] = flat.cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return out


def _write(
    source: Source,
    stage: Stage,
    columns: Mapping[str, Stage],
    block: Block,
    inside: npt.NDArray[np.bool_],
    vectors: Mapping[str, Float32],
    what: str,
    quarantine: bool,
) -> None:
    bad: dict[int, str] = {}
    rows = np.flatnonzero(inside)
    for name, found in vectors.items():
        finite = np.isfinite(found).all(axis=1)
        zero = finite & ~found.any(axis=1)
        for mask, why in ((~finite, "null, not finite or of another length than the others"), (zero, "zero")):
            for row in rows[mask].tolist():
                bad.setdefault(block.start + row, f"column {name!r}: {what} is {why}")
        if len(rows):
            whole = np.zeros((block.rows, found.shape[1]), np.float32)
            whole[rows] = found
            save_matrices(columns[name].piece(block.number, "arrow"), {"vector": whole})
    listed = [BadRow(index, *source.locate(index), why) for index, why in bad.items()]
    write_bad_rows(stage, block, listed, quarantine=quarantine)


def _prompted(texts: pa.ChunkedArray, prompt: str | None) -> list[str]:
    values: list[str] = texts.to_pylist()
    return [prompt + text for text in values] if prompt else values
