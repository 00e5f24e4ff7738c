"""B3 on a cluster: the same plan as :meth:`curation.selectors.b3.B3.plan` in memory, for any number of workers.

The rows that are still in get consecutive numbers 0..M-1, and their vectors two memory-mapped matrices. The
search is cut into (query block, part of the database): each task keeps the best ranks of its part, and these are
merged exactly, ties by index, into ``near.npy`` and ``window.npy``. Every task leaves a file, so a search that
was killed goes on, and one whose worker died is done again.

Memory of a search task: ``part_rows``·4·D bytes, twice where the engine copies them into an index, and the
search's tiles. :mod:`curation.pipelines.group` goes on from there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from curation.errors import StepError
from curation.files import atomic, write_text
from curation.gpu._matrix import Matrix
from curation.gpu.knn import choose, knn
from curation.pipelines.blocks import save
from curation.pipelines.workspace import Stage
from curation.recipe import MineB3
from curation.selectors._apart import conflict_columns
from curation.source import Block, Source

Int64 = npt.NDArray[np.int64]

PARTIAL = np.dtype([("row", np.int64), ("score", np.float32)])
APPROXIMATE = ("faiss-ivf", "faiss-hnsw")
INDEXED_QUERIES = 1_000_000


@dataclass(frozen=True)
class Layout:
    """The folder of a ``b3`` step's matrices, and what stands in its ``layout.json``."""

    folder: Path
    rows: int
    engine: str

    @classmethod
    def load(cls, folder: Path) -> "Layout":
        """Read it."""
        told = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
        return cls(folder, told["rows"], told["engine"])

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

    step: MineB3
    stage: Stage
    vectors: Mapping[str, Stage]
    blocks: Sequence[Block]
    reason: Path

    def __call__(self) -> None:
        inside = np.load(self.reason, mmap_mode="r") == 0
        rows = int(np.count_nonzero(inside))
        first = next(block for block in self.blocks if inside[block.start : block.start + block.rows].any())
        widths = {
            side: np.load(self.vectors[side].piece(first.number), mmap_mode="r").shape[1] for side in self.vectors
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
                side: np.load(stage.piece(block.number), mmap_mode="r")[inside] for side, stage in self.vectors.items()
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
            for place, name in enumerate(self.hashed):
                if name in sides:
                    keys: list[bytes | None] = [row.tobytes() for row in sides[name]]
                else:
                    assert table is not None
                    keys = table[name].cast(pa.string()).cast(pa.binary()).to_pylist()
                digests = b"".join(b"\0" * 16 if key is None else xxhash.xxh3_128_digest(key) for key in keys)
                hashes[place] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
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


@dataclass(frozen=True)
class SearchPiece:
    """Queries ``start`` to ``stop`` against database rows ``low`` to ``high``."""

    number: int
    start: int
    stop: int
    low: int = 0
    high: int = 0

    @property
    def rows(self) -> int:
        """Queries."""
        return self.stop - self.start


def search_pieces(step: MineB3, layout: Layout, block_rows: int) -> tuple[list[SearchPiece], list[SearchPiece]]:
    """The searches, and the query blocks that their results are merged in: piece ``block·parts + part``."""
    # An approximate engine builds an index in every task, so it gets many queries at once.
    chunk = max(block_rows, INDEXED_QUERIES) if layout.engine in APPROXIMATE else block_rows
    parts = [(low, min(low + step.part_rows, layout.rows)) for low in range(0, layout.rows, step.part_rows)]
    chunks = [
        SearchPiece(number, start, min(start + chunk, layout.rows))
        for number, start in enumerate(range(0, layout.rows, chunk))
    ]
    pieces = [
        SearchPiece(piece.number * len(parts) + place, piece.start, piece.stop, low, high)
        for piece in chunks
        for place, (low, high) in enumerate(parts)
    ]
    return pieces, chunks


@dataclass(frozen=True)
class Search:
    """The best ranks of some queries in one part of the database, as PARTIAL[queries, ranks]; -1 for none."""

    step: MineB3
    matrices: Stage
    stage: Stage
    seed: int

    def __call__(self, piece: SearchPiece) -> None:
        layout = Layout.load(self.matrices.folder)
        # Copied: torch warns of arrays that it may not write to.
        queries = layout.array("queries")[piece.start : piece.stop].copy()
        database = layout.array("positives")[piece.low : piece.high].copy()
        apart, datasets = layout.ids("apart"), layout.ids("datasets")
        best = np.empty((piece.rows, self.step.ranks[1]), PARTIAL)
        best["row"], best["score"] = -1, -np.inf
        told: dict[str, Any] = {"engine": layout.engine, "exact": layout.engine not in APPROXIMATE}
        for left, right in _pairs(piece, datasets):
            own = piece.start + left - piece.low
            place = np.minimum(np.searchsorted(right, own), len(right) - 1)
            found = knn(
                queries if datasets is None else queries[left],
                database if datasets is None else database[right],
                count=self.step.ranks[1],
                metric=self.step.metric,
                exclude=np.where(right[place] == own, place, -1),
                exclude_same=[
                    (column[piece.start + left], column[piece.low + right])
                    for column in (() if apart is None else apart)
                ],
                engine=layout.engine,
                memory_budget=budget(self.step),
                seed=self.seed,
            )
            inside = found.indices >= 0
            best["row"][left] = np.where(inside, piece.low + right[np.maximum(found.indices, 0)], -1)
            best["score"][left] = found.scores
            told |= {"exact": found.exact, "recall": found.recall, "settings": dict(found.settings)}
        write_text(self.stage.piece(piece.number, "json"), json.dumps(told))
        save(self.stage.piece(piece.number), best)


@dataclass(frozen=True)
class Merge:
    """Merge the parts' ranks of one query block, cut them in two, and leave out what is too similar."""

    step: MineB3
    matrices: Stage
    searches: Stage
    stage: Stage
    parts: int

    def __call__(self, piece: SearchPiece) -> None:
        layout = Layout.load(self.matrices.folder)
        numbers = range(piece.number * self.parts, (piece.number + 1) * self.parts)
        partial = np.concatenate([np.load(self.searches.piece(number)) for number in numbers], axis=1)
        rows, scores = partial["row"], partial["score"]
        order = np.lexsort((np.where(rows < 0, layout.rows, rows), -scores))[:, : self.step.ranks[1]]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        small = self.step.ranks[0]
        near, window, scores = rows[:, :small], rows[:, small:], scores[:, small:]
        if self.step.similarity_ceiling is not None:
            window = np.where(scores > self.step.similarity_ceiling, -1, window)
        if self.step.positive_margin is not None:
            queries, positives = (layout.array(side)[piece.start : piece.stop] for side in ("queries", "positives"))
            own = Matrix(positives, "positives").score_pairs(queries, np.arange(piece.rows)[:, None], l2=False)
            window = np.where(scores > self.step.positive_margin * own, -1, window)
        for name, values in (("near", near), ("window", window)):
            if values.shape[1]:
                layout.put(name, piece.start, values)
        save(self.stage.piece(piece.number), np.array([piece.rows]))


def budget(step: MineB3) -> int:
    """Bytes for a search's tiles."""
    memory = step.resources.memory_mib
    return 1 << 30 if memory is None else max(1 << 20, (memory << 20) // 2)


def _pairs(piece: SearchPiece, datasets: Int64 | None) -> Iterator[tuple[Int64, Int64]]:
    # Which of the queries may meet which of the part's rows.
    if datasets is None:
        yield np.arange(piece.rows), np.arange(piece.high - piece.low)
        return
    left, right = datasets[piece.start : piece.stop], datasets[piece.low : piece.high]
    for one in np.intersect1d(left, right).tolist():
        yield np.flatnonzero(left == one), np.flatnonzero(right == one)


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
