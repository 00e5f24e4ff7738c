"""Vectors that a ``b3`` step searches: of the rows that are still in, in two matrices; and which rows may not meet.

The rows get consecutive numbers 0..M-1. Blocks are gathered by tasks of their own into memory-mapped files, at places
that are known beforehand, so they may come in any order and twice. Memory of a task is that of its block.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from curation.arrow import load_matrix
from curation.errors import StepError
from curation.files import atomic, write_text
from curation.gpu.knn import choose
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.embed import write_vectors
from curation.selectors.b3.conflicts import conflict_columns
from curation.sources.base import Block, Source

if TYPE_CHECKING:
    from curation.pipelines.steps.b3 import MineB3

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


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
        write_vectors(self.source, self.stage, self.columns, block, inside, vectors, "the vector", self.quarantine)


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


@dataclass(frozen=True)
class Layout:
    """The folder of a ``b3`` step's matrices, and what stands in its ``layout.json``."""

    folder: Path
    rows: int
    engine: str

    @classmethod
    def load(cls, folder: Path) -> "Layout":
        """Read it."""
        record = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
        return cls(folder, record["rows"], record["engine"])

    def array(self, name: str) -> npt.NDArray[Any]:
        """One of ``queries``, ``positives``, ``near``, ``window``, ``apart``, ``datasets``, memory-mapped."""
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))

    def put(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        """Write rows of a matrix; they are on disk when this returns."""
        matrix = np.load(self.folder / f"{name}.npy", mmap_mode="r+")
        matrix[start : start + len(values)] = values
        matrix.flush()

    def ids(self, name: str) -> Int64 | None:
        """``apart`` or ``datasets``, where there are any."""
        return self.array(name) if (self.folder / f"{name}.npy").exists() else None


@dataclass(frozen=True)
class Allocate:
    """Make room for the vectors of the rows that are still in, and for their ranks."""

    step: "MineB3"
    stage: Stage
    vectors: Mapping[str, Stage]
    blocks: Sequence[Block]
    reason: Path

    def __call__(self) -> None:
        inside = np.load(self.reason, mmap_mode="r") == 0
        rows = int(np.count_nonzero(inside))
        first = next(block for block in self.blocks if inside[block.start : block.start + block.rows].any())
        widths = {
            side: load_matrix(stage.piece(first.number, "arrow"), "vector").shape[1]
            for side, stage in self.vectors.items()
        }
        if len(set(widths.values())) > 1:
            raise StepError(
                f"b3: the vectors of {self.step.queries!r} have {widths['queries']} numbers, those of "
                f"{self.step.positives!r} have {widths['positives']}: one teacher must make both"
            )
        small, end = self.step.ranks
        kind = np.int32 if rows < 2**31 else np.int64
        for side, width in widths.items():
            self._make(side, (rows, width), np.float32)
        self._make("near", (rows, small), kind)
        self._make("window", (rows, end - small), kind)
        layout = {"rows": rows, "engine": choose(self.step.engine, rows)}
        write_text(self.stage.folder / "layout.json", json.dumps(layout))

    def _make(self, name: str, shape: tuple[int, int], kind: Any) -> None:
        # What a killed driver's task still does must not wipe what the next driver's have filled in.
        if (self.stage.folder / f"{name}.npy").exists():
            return
        with atomic(self.stage.folder / f"{name}.npy") as path, path.open("wb") as file:
            np.lib.format.write_array_header_2_0(
                file, {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
            )
            file.truncate(file.tell() + shape[0] * shape[1] * np.dtype(kind).itemsize)


@dataclass(frozen=True)
class Gather:
    """Put a block's vectors in their place, and hash what tells which rows must not meet."""

    source: Source
    stage: Stage
    vectors: Mapping[str, Stage]
    hashed: tuple[str, ...]
    reason: Path

    def __call__(self, block: Block) -> None:
        reason = np.load(self.reason, mmap_mode="r")
        inside = reason[block.start : block.start + block.rows] == 0
        low = int(np.count_nonzero(reason[: block.start] == 0))
        count = int(np.count_nonzero(inside))
        hashes = np.zeros((len(self.hashed), count, 2), np.uint64)
        if count:
            layout = Layout.load(self.stage.folder)
            sides = {
                side: load_matrix(stage.piece(block.number, "arrow"), "vector")[inside]
                for side, stage in self.vectors.items()
            }
            for side, values in sides.items():
                width = layout.array(side).shape[1]
                if values.shape[1] != width:
                    raise StepError(
                        f"b3: {side} of rows {block.start} to {block.start + block.rows - 1} have "
                        f"{values.shape[1]} numbers, others {width}"
                    )
                layout.put(side, low, values)
            names = [name for name in self.hashed if name not in sides]
            table = self.source.read(block, names)[0].filter(pa.array(inside)) if names else None
            for column, name in enumerate(self.hashed):
                if name in sides:
                    keys: list[bytes | None] = [row.tobytes() for row in sides[name]]
                else:
                    assert table is not None
                    keys = table[name].cast(pa.string()).cast(pa.binary()).to_pylist()
                digests = b"".join(b"\0" * 16 if key is None else xxhash.xxh3_128_digest(key) for key in keys)
                hashes[column] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        save(self.stage.piece(block.number), hashes)


@dataclass(frozen=True)
class KeepApart:
    """From hashes to ids: which rows must not meet, and which data set each belongs to."""

    stage: Stage
    blocks: Sequence[Block]
    columns: int
    apart: int

    def __call__(self) -> None:
        layout = Layout.load(self.stage.folder)
        pieces = [np.load(self.stage.piece(block.number)) for block in self.blocks]
        ids = [_ids(np.concatenate([piece[column] for piece in pieces])) for column in range(self.columns)]
        if self.apart:
            columns = conflict_columns(np.stack(ids[: self.apart], 1), layout.rows)
            if columns is not None:
                save(self.stage.folder / "apart.npy", columns)
        if self.columns > self.apart:
            datasets = ids[self.apart]
            save(self.stage.folder / "datasets.npy", np.where(datasets < 0, datasets.max() + 1, datasets))
        self.stage.finish({"rows_out": layout.rows})


def _ids(hashes: npt.NDArray[np.uint64]) -> Int64:
    # Ids in order of appearance; -1 for what was null.
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = np.any(hashes[order[1:]] != hashes[order[:-1]], axis=1)
    first = np.minimum.reduceat(order, np.flatnonzero(new))
    group = np.cumsum(new) - 1
    null = ~hashes[order[np.flatnonzero(new)]].any(axis=1)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(np.where(null, len(order), first), kind="stable")] = np.arange(len(first))
    rank[null] = -1
    out = np.empty(len(order), np.int64)
    out[order] = rank[group]
    return out
