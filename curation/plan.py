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
        metadata: what made the plan (method, parameters, seed, epoch), as strings; saved with it.

    Raises:
        ValueError: offsets do not fit, an index repeats or is negative, or lengths differ.
        TypeError: indices are not integers.
    """

    indices: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64] | None = None
    negatives: npt.NDArray[np.int64] | None = None
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
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "clusters", clusters)
        object.__setattr__(self, "negatives", negatives)
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
        """A row for each batch: ``indices`` list<int64>, and ``clusters`` and ``negatives`` where present."""

        def lists(values: pa.Array) -> pa.Array:
            return pa.LargeListArray.from_arrays(pa.array(self.offsets), values)

        columns = {"indices": lists(pa.array(self.indices))}
        if self.clusters is not None:
            columns["clusters"] = lists(pa.array(self.clusters))
        if self.negatives is not None:
            flat = pa.array(self.negatives.reshape(-1))
            columns["negatives"] = lists(pa.FixedSizeListArray.from_arrays(flat, self.negatives.shape[1]))
        return pa.table(columns).replace_schema_metadata(dict(self.metadata))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "BatchPlan":
        """The inverse of :meth:`to_arrow`."""

        def flat(name: str) -> pa.Array:
            column = table[name]
            chunks = [chunk.flatten() for chunk in column.chunks]
            return pa.chunked_array(chunks, column.type.value_type).combine_chunks()

        lengths = [chunk.value_lengths().to_numpy() for chunk in table["indices"].chunks]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.empty(0, np.int64)]))])
        negatives = flat("negatives") if "negatives" in table.column_names else None
        return cls(
            indices=flat("indices").to_numpy(),
            offsets=offsets.astype(np.int64),
            clusters=flat("clusters").to_numpy() if "clusters" in table.column_names else None,
            negatives=None
            if negatives is None
            else negatives.flatten().to_numpy().reshape(-1, negatives.type.list_size),
            metadata={k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()},
        )
