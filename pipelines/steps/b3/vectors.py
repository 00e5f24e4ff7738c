"""Vectors that a ``b3`` step searches: of the rows that are still in, in two matrices, with hashes of their ids.

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
from curation.selectors.b3.batches import foresee
from curation.selectors.b3.conflicts import conflict_columns
from curation.selectors.b3.ranks import Ranks, rank_bounds, rank_widths
from curation.sources.base import Block, Source

if TYPE_CHECKING:
    from curation.pipelines.steps.b3 import MineB3

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


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
        """One of ``queries``, ``positives``, ``bounds`` (of ranks), ``near``, ``window``, or ids; memory-mapped."""
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))

    def put(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        """Write rows of a matrix; they are on disk when this returns."""
        matrix = np.load(self.folder / f"{name}.npy", mmap_mode="r+")
        matrix[start : start + len(values)] = values
        matrix.flush()

    def ids(self, name: str) -> Int64 | None:
        """``apart``, ``labels`` or ``datasets``, where there are any."""
        return self.array(name) if (self.folder / f"{name}.npy").exists() else None


def make_room(folder: Path, name: str, shape: tuple[int, int], kind: Any) -> None:
    """A file for an array, which :meth:`Layout.put` fills in."""
    # What a killed driver's task still does must not wipe what the next driver's have filled in.
    if (folder / f"{name}.npy").exists():
        return
    with atomic(folder / f"{name}.npy") as path, path.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + shape[0] * shape[1] * np.dtype(kind).itemsize)


@dataclass(frozen=True)
class Allocate:
    """Make room for the vectors of the rows that are still in."""

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
        for side, width in widths.items():
            make_room(self.stage.folder, side, (rows, width), np.float32)
        engine = choose(self.step.engine, rows, compared=self.step.labels is not None)
        layout = {"rows": rows, "engine": engine}
        write_text(self.stage.folder / "layout.json", json.dumps(layout))


def allot_ranks(step: "MineB3", layout: Layout, names: npt.NDArray[np.uint64] | None) -> None:
    """Write which ranks each row keeps, and make room for them; ``names`` uint64[rows, 2], hashes of data sets."""
    datasets, labels, ranks = layout.ids("datasets"), layout.ids("labels"), step.ranks
    bound_to: Ranks = ranks if isinstance(ranks, tuple) else {}
    if isinstance(ranks, dict) and datasets is not None and names is not None:
        rows = {name: np.flatnonzero((names == digests([name.encode()])).all(1))[:1] for name in ranks}
        bound_to = {int(datasets[row[0]]): ranks[name] for name, row in rows.items() if len(row)}
    try:
        bounds = rank_bounds(bound_to, layout.rows, datasets=datasets, labels=labels)
    except ValueError as error:
        raise StepError(f"b3: {error}") from error
    save(layout.folder / "bounds.npy", bounds)
    for name, width in zip(("near", "window"), rank_widths(bounds), strict=True):
        make_room(layout.folder, name, (layout.rows, width), np.int32 if layout.rows < 2**31 else np.int64)


def digests(keys: Sequence[bytes | None]) -> npt.NDArray[np.uint64]:
    """uint64[len(keys), 2]: equal keys have equal hashes, and what is null has zeros."""
    joined = b"".join(b"\0" * 16 if key is None else xxhash.xxh3_128_digest(key) for key in keys)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Gather:
    """Put a block's vectors in their place, and hash what tells which rows must not meet."""

    step: "MineB3"
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
            names = [name for name in dict.fromkeys(self.hashed) if name not in sides]
            table = self.source.read(block, names)[0].filter(pa.array(inside)) if names else None
            for column, name in enumerate(self.hashed):
                if name in sides:
                    keys: list[bytes | None] = [row.tobytes() for row in sides[name]]
                else:
                    assert table is not None
                    keys = table[name].cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
                hashes[column] = digests(keys)
            if table is not None and isinstance(self.step.ranks, dict):
                assert self.step.datasets is not None
                unknown = set(table[self.step.datasets].cast(pa.string()).unique().to_pylist()) - set(self.step.ranks)
                if unknown:
                    raise StepError(
                        f"b3: `ranks` give no pair to {sorted(map(repr, unknown))[0]} of column "
                        f"{self.step.datasets!r}: add one for each of its values"
                    )
        save(self.stage.piece(block.number), hashes)


@dataclass(frozen=True)
class KeepApart:
    """From hashes to ids: which rows must not meet, and each row's label, data set and ranks.

    The first ``apart`` columns of hashes are of what keeps rows apart; labels and data sets follow, where asked for.
    """

    step: "MineB3"
    stage: Stage
    blocks: Sequence[Block]
    apart: int

    def __call__(self) -> None:
        layout = Layout.load(self.stage.folder)
        pieces = [np.load(self.stage.piece(block.number)) for block in self.blocks]
        names = [name for name in ("labels", "datasets") if getattr(self.step, name) is not None]
        hashes = [np.concatenate([piece[column] for piece in pieces]) for column in range(self.apart + len(names))]
        columns = self._columns(hashes[: self.apart], layout.rows)
        if columns is not None:
            save(self.stage.folder / "apart.npy", columns)
        for name, column in zip(names, hashes[self.apart :], strict=True):
            ids = _ids(column)
            if name == "datasets":
                ids[ids < 0] = ids.max() + 1
            save(self.stage.folder / f"{name}.npy", ids)
        allot_ranks(self.step, layout, hashes[-1] if "datasets" in names else None)
        self.stage.finish({"rows_out": layout.rows})

    def _columns(self, hashes: Sequence[npt.NDArray[np.uint64]], rows: int) -> Int64 | None:
        sides = len(hashes) - (self.step.groups is not None)
        if self.step.duplicates == "apart" and sides == 2:
            queries, positives = np.split(_ids(np.concatenate(hashes[-2:])), 2)
            groups = None if self.step.groups is None else _ids(hashes[0])
            return conflict_columns(groups, rows, across=(queries, positives))
        return conflict_columns(np.stack([_ids(column) for column in hashes], 1), rows) if hashes else None


@dataclass(frozen=True)
class Foresee:
    """Stop, before the search, where rows cannot be kept apart and the step does not say what becomes of them."""

    step: "MineB3"
    stage: Stage

    def __call__(self) -> None:
        layout = Layout.load(self.stage.folder)
        try:
            foresee(
                layout.rows, batch_size=self.step.batch_size, apart=layout.ids("apart"),
                datasets=layout.ids("datasets"), last=self.step.last, surplus=self.step.surplus,
            )  # fmt: skip
        except ValueError as error:
            raise StepError(f"b3: {error}") from error


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
