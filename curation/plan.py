"""Batch plan: an epoch's batches, decided in advance."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import SourceError
from curation.files import atomic
from curation.selection import as_positions, check_distinct


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchPlan:
    """Batches of candidates: batch b is ``indices[offsets[b]:offsets[b + 1]]``.

    Args:
        indices: int64[M], distinct positions, in order.
        offsets: int64[B + 1], rising from 0 to M; no batch is empty.
        clusters: int64[M], the community each row came from, where the method has any.
        negatives: int64[M, h], explicit hard negatives of each row, -1 where there are fewer than h.
        apart: int64[K, 2], what no batch may hold twice: pairs (row of the plan in 0..M-1, id), rising by row. Rows
            that share an id were kept in different batches, as far as that went; a row may have several ids, or none.
            Empty where rows may meet as they like. None where nobody knows: then no two batches may be joined.
        datasets: int64[B], the data set of each batch: only batches of one may be joined. None for a single one.
        metadata: what made the plan (method, parameters, seed, epoch), as strings; saved with it.

    Raises:
        ValueError: offsets do not fit, an index repeats or is negative, or lengths differ.
        TypeError: indices are not integers.
    """

    indices: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64] | None = None
    negatives: npt.NDArray[np.int64] | None = None
    apart: npt.NDArray[np.int64] | None = None
    datasets: npt.NDArray[np.int64] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        indices = as_positions(self.indices, "indices")
        offsets = as_positions(self.offsets, "offsets")
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(indices) or np.any(np.diff(offsets) < 1):
            raise ValueError(f"offsets must rise from 0 to {len(indices)} (the number of indices) with no empty batch")
        check_distinct(indices, None)
        clusters = None if self.clusters is None else as_positions(self.clusters, "clusters")
        if clusters is not None and len(clusters) != len(indices):
            raise ValueError(f"clusters has {len(clusters)} rows, but indices has {len(indices)}")
        negatives = None if self.negatives is None else np.asarray(self.negatives)
        if negatives is not None:
            if negatives.ndim != 2 or len(negatives) != len(indices) or negatives.shape[1] == 0:
                raise ValueError(f"negatives must have shape [{len(indices)}, h], h ≥ 1, not {negatives.shape}")
            negatives = as_positions(negatives.reshape(-1), "negatives").reshape(negatives.shape)
        apart = None if self.apart is None else np.asarray(self.apart)
        if apart is not None:
            if apart.ndim != 2 or apart.shape[1] != 2:
                raise ValueError(f"apart must have shape [K, 2], not {apart.shape}")
            apart = as_positions(apart.reshape(-1), "apart").reshape(apart.shape)
            rows = apart[:, 0]
            if len(rows) and not (rows[0] >= 0 and rows[-1] < len(indices) and np.all(rows[1:] >= rows[:-1])):
                raise ValueError(f"apart must name rows of the plan, 0 to {len(indices) - 1}, rising")
        datasets = None if self.datasets is None else as_positions(self.datasets, "datasets")
        if datasets is not None and len(datasets) != len(offsets) - 1:
            raise ValueError(f"datasets has {len(datasets)} entries, but there are {len(offsets) - 1} batches")
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "clusters", clusters)
        object.__setattr__(self, "negatives", negatives)
        object.__setattr__(self, "apart", apart)
        object.__setattr__(self, "datasets", datasets)
        object.__setattr__(self, "metadata", dict(self.metadata))

    @classmethod
    def of_size(cls, indices: npt.ArrayLike, batch_size: int, *, drop_last: bool = False) -> "BatchPlan":
        """Cut positions into consecutive batches of ``batch_size``; the last may be shorter, or dropped."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        positions = as_positions(indices, "indices")
        if drop_last:
            positions = positions[: len(positions) // batch_size * batch_size]
        offsets = np.append(np.arange(0, len(positions), batch_size), len(positions))
        return cls(indices=positions, offsets=offsets.astype(np.int64))

    def __len__(self) -> int:
        """B, the number of batches."""
        return len(self.offsets) - 1

    def __getitem__(self, batch: int) -> npt.NDArray[np.int64]:
        """int64[size], the positions of one batch (a view)."""
        if not -len(self) <= batch < len(self):
            raise IndexError(f"batch {batch} is out of range: the plan has {len(self)}")
        batch %= len(self)
        return self.indices[self.offsets[batch] : self.offsets[batch + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[batch] for batch in range(len(self)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an Arrow IPC file, a row for each batch; atomic: a reader sees all of it or none."""
        table = self.to_arrow()
        with (
            atomic(Path(path)) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=65_536)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BatchPlan":
        """Memory-map a plan that :meth:`save` wrote.

        Raises:
            SourceError: the file is missing or is not a plan.
        """
        try:
            with pa.memory_map(str(path)) as source:
                return cls.from_arrow(pa.ipc.open_file(source).read_all())
        except (OSError, pa.ArrowException, KeyError, AttributeError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: not a batch plan: {error}") from error

    def to_arrow(self) -> pa.Table:
        """A row for each batch: ``indices`` list<int64>, and where present ``clusters``, ``negatives``, ``apart``
        (its pairs, whose rows count from the plan's first) and ``datasets``."""

        def lists(values: pa.Array, offsets: npt.NDArray[np.int64] = self.offsets) -> pa.Array:
            return pa.LargeListArray.from_arrays(pa.array(offsets), values)

        def tuples(values: npt.NDArray[np.int64]) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

        columns = {"indices": lists(pa.array(self.indices))}
        if self.clusters is not None:
            columns["clusters"] = lists(pa.array(self.clusters))
        if self.negatives is not None:
            columns["negatives"] = lists(tuples(self.negatives))
        if self.apart is not None:
            columns["apart"] = lists(tuples(self.apart), np.searchsorted(self.apart[:, 0], self.offsets))
        if self.datasets is not None:
            columns["datasets"] = pa.array(self.datasets)
        return pa.table(columns).replace_schema_metadata(dict(self.metadata))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "BatchPlan":
        """The inverse of :meth:`to_arrow`."""
        names = set(table.column_names)

        def flat(name: str) -> pa.Array:
            column = table[name]
            chunks = [chunk.flatten() for chunk in column.chunks]
            return pa.chunked_array(chunks, column.type.value_type).combine_chunks()

        def tuples(name: str) -> npt.NDArray[np.int64] | None:
            if name not in names:
                return None
            values = flat(name)
            rows: npt.NDArray[np.int64] = values.flatten().to_numpy().reshape(-1, values.type.list_size)
            return rows

        lengths = [chunk.value_lengths().to_numpy() for chunk in table["indices"].chunks]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.empty(0, np.int64)]))])
        return cls(
            indices=flat("indices").to_numpy(),
            offsets=offsets.astype(np.int64),
            clusters=flat("clusters").to_numpy() if "clusters" in names else None,
            negatives=tuples("negatives"),
            apart=tuples("apart"),
            datasets=table["datasets"].to_numpy() if "datasets" in names else None,
            metadata={k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()},
        )
