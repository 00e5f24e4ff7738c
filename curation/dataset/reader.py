"""The reader of a finished dataset, from an open folder to rows by position.

Shards are Arrow IPC streams, memory-mapped: they have no index, so record batches are walked, which touches only their
headers. Positions 0..len-1 are rows in the order of the shards; a row's ``_index`` is its position in the source.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from curation.arrow import is_text, take_rows
from curation.dataset.decisions import Decisions
from curation.dataset.manifest import BATCHES, DECISIONS, MANIFEST, Manifest
from curation.dataset.writer import INDEX, shard_names
from curation.errors import SourceError
from curation.plan import BatchPlan
from curation.progress import Progress, Silent
from curation.recipe.model import BLOCK_BYTES, SourceSpec
from curation.selection import as_positions
from curation.sources.base import Block, Source

if TYPE_CHECKING:
    from curation.dataset.explain import Explanation
    from curation.dataset.inspect import Inspection

Ints = npt.NDArray[np.int64]

_SILENT = Silent()


class Dataset:
    """A finished curated dataset: what ``curation run`` put into a folder.

    Opening reads ``manifest.json`` alone. Nothing here holds a Python object for each row, so it works as well for
    10^8 rows; what a method reads and keeps is said there. Not to be pickled: open the folder again.

    Args:
        folder: the dataset.
        manifest: its manifest, where the caller has it already, as a run has before it writes the report.
        source: where its candidates came from, where the caller has that open. None: as its recipe says.
        within: a folder in which every file that is read must lie, with all symbolic links followed. None: anywhere.

    Raises:
        SourceError: the folder is no finished dataset.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        manifest: Manifest | None = None,
        source: Source | None = None,
        within: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._source = source
        self._within = None if within is None else Path(within).resolve()
        self.manifest = Manifest.load(self.file(MANIFEST).parent) if manifest is None else manifest

    def __len__(self) -> int:
        """Rows kept."""
        return self.manifest.rows_out

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}): {len(self):,} of {self.manifest.rows_in:,} rows kept"

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            SourceError: it leads out of the folder that it must lie ``within``.
        """
        path = self.folder / name
        if self._within is not None and not path.resolve().is_relative_to(self._within):
            raise SourceError(f"{path}: leads out of {self._within}")
        return path

    @cached_property
    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        return shard_names(self.manifest)

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the shards: the source's, ``_index``, ``_weight``, and the scores; none where there is no shard.

        Raises:
            SourceError: the first shard cannot be read.
        """
        if not self.shards:
            return pa.schema([])
        path = self.file(self.shards[0])
        try:
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_stream(source).schema
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{path}: cannot be read: {error}") from error

    @property
    def score_names(self) -> list[str]:
        """Names of the score columns, in the order they were made."""
        return self.manifest.scores

    @cached_property
    def text_column(self) -> str | None:
        """The column that says most to a reader: the last that a step of the recipe names as its ``column``, else
        ``text``, else the first that holds text; None where none does.

        Raises:
            SourceError: the first shard cannot be read.
        """
        texts = [field.name for field in self.schema if is_text(field.type)]
        named = [step.get("column") for step in reversed(self.manifest.recipe["steps"])]
        return next((name for name in [*named, "text", *texts] if name in texts), None)

    @cached_property
    def decisions(self) -> Decisions:
        """The account of every candidate, ``decisions.arrow``, memory-mapped.

        Raises:
            SourceError: it is missing, is no Arrow IPC file, or lacks a column.
        """
        return Decisions(self.file(DECISIONS), self.manifest)

    @cached_property
    def plan(self) -> BatchPlan | None:
        """The batches that the recipe made of the rows, or None where it did not group; 8 bytes a row and more.

        Raises:
            SourceError: it cannot be read.
        """
        path = self.file(BATCHES)
        return BatchPlan.load(path) if path.exists() else None

    def batches(
        self, columns: Sequence[str] | None = None, *, shards: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """All rows in order, as memory-mapped record batches: what is not looked at is not read.

        Args:
            columns: these columns, in this order. None: all.
            shards: names of shards to read. None: all.

        Raises:
            SourceError: a shard is missing, is no Arrow IPC stream, or lacks a column.
            ValueError: the dataset has no such column.
        """
        if columns is not None and self.shards:
            columns = self._subset(columns).names
        for name in self.shards if shards is None else shards:
            path = self.file(name)
            try:
                with pa.memory_map(str(path)) as source:
                    for batch in pa.ipc.open_stream(source):
                        yield batch if columns is None else batch.select(columns)
            except (OSError, pa.ArrowInvalid, KeyError) as error:
                raise SourceError(f"{path}: cannot be read: {error}") from error

    def rows(self, positions: npt.ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by position, in the order asked; a position may come up more than once.

        Costs a walk over the record batches of the shards that hold them, and memory of these rows.

        Args:
            positions: int[k], each in 0..len-1.
            columns: these columns, in this order. None: all.

        Returns:
            k rows, copied from the shards.

        Raises:
            IndexError: a position is out of range.
            TypeError: positions are not integers.
            ValueError: positions are not one-dimensional, there is no such column, or no column is asked for.
            SourceError: a shard cannot be read, or holds fewer rows than the manifest says.
        """
        wanted = as_positions(positions, "positions")
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise IndexError(f"position {outside[0]} is out of range: {self.folder} has {len(self):,} rows, from 0 on")
        schema = self._subset(columns)
        try:
            return take_rows(wanted, schema, self._around(wanted, columns))
        except EOFError as error:
            raise SourceError(f"{self.folder}: its shards hold fewer rows than the manifest says: {error}") from error
        except pa.ArrowInvalid as error:
            raise SourceError(f"{self.folder}: these rows cannot be read: {error}") from error

    def positions(self, indices: npt.ArrayLike) -> Ints:
        """Where candidates stand in the shards, in one pass over the column ``_index``.

        Args:
            indices: int[k], positions in the source.

        Returns:
            int64[k], positions in 0..len-1, -1 for candidates that were dropped.

        Raises:
            SourceError: a shard cannot be read.
        """
        wanted, order = np.unique(as_positions(indices, "indices"), return_inverse=True)
        standing = np.full(len(wanted), -1, np.int64)
        values = pa.array(wanted)
        start, remaining = 0, len(wanted)
        for batch in self.batches([INDEX]):
            if remaining <= 0:
                break
            rows = np.flatnonzero(pc.is_in(batch.column(0), values).to_numpy(zero_copy_only=False))
            standing[np.searchsorted(wanted, batch.column(0).to_numpy()[rows])] = start + rows
            remaining -= len(rows)
            start += batch.num_rows
        return standing[order]

    def locate(self, position: int) -> tuple[str, int]:
        """The shard that holds a row, and the row's number in it.

        Raises:
            IndexError: the position is out of range.
        """
        if not 0 <= position < self._starts[-1]:
            raise IndexError(f"position {position} is out of range: {self.folder} has {len(self):,} rows, from 0 on")
        number = int(np.searchsorted(self._starts, position, "right")) - 1
        return self.shards[number], position - int(self._starts[number])

    def candidates(self) -> tuple[Source, list[Block]]:
        """The source of the candidates, kept and dropped, and its blocks as they were read.

        Raises:
            SourceError: it cannot be read any more, or was in memory.
        """
        from curation.sources import open_source

        recipe = self.manifest.recipe
        source = self._source or open_source(TypeAdapter[SourceSpec](SourceSpec).validate_python(recipe["source"]))
        return source, source.blocks(recipe["block_rows"], recipe.get("block_bytes", BLOCK_BYTES))

    def verify(self, progress: Progress = _SILENT) -> None:
        """Hash every file again and count every row again (see :mod:`curation.dataset.verify`).

        Raises:
            VerificationError: something differs from the manifest; the message lists all of it, a line each.
        """
        from curation.dataset.verify import verify

        verify(self, progress)

    def explain(self, index: int) -> "Explanation":
        """Why the candidate at position ``index`` of the source was kept or dropped, in two passes over the decisions.

        Raises:
            SourceError: there is no such candidate, or a file cannot be read.
        """
        from curation.dataset.explain import explain

        return explain(self, index)

    def inspect(self, samples: int = 3) -> "Inspection":
        """Columns, candidates by reason, histograms and cuts of the scores, and some rows at even distances.

        Raises:
            SourceError: a file cannot be read.
        """
        from curation.dataset.inspect import inspect

        return inspect(self, samples)

    def to_datasets(self) -> Any:
        """The shards as a Hugging Face ``datasets.Dataset``, memory-mapped (``datasets.load_from_disk``)."""
        import datasets

        return datasets.load_from_disk(str(self.folder))

    def to_ray(self) -> Any:
        """The shards as a ``ray.data.Dataset``, one lazy read task a shard; workers must see the folder.

        Ray gives blocks as they are read: for the order of the shards set ``preserve_order`` of the
        ``ray.data.DataContext``'s execution options.
        """
        import ray.data

        names = [{"shard": name} for name in self.shards]
        read = partial(_tables, self.folder.absolute())
        tasks = ray.data.from_items(names, override_num_blocks=max(1, len(names)))
        return tasks.map_batches(read, batch_size=1, batch_format="pyarrow")

    @cached_property
    def _starts(self) -> Ints:
        """int64[shards + 1], the position of each shard's first row, and the number of rows."""
        counts = [self.manifest.files[name].rows or 0 for name in self.shards]
        return np.cumsum([0, *counts], dtype=np.int64)

    def _subset(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        if not columns:
            raise ValueError("ask for at least one column")
        for name in columns:
            if name not in self.schema.names:
                raise ValueError(f"{self.folder} has no column {name!r}; it has {', '.join(self.schema.names)}")
        return pa.schema([self.schema.field(name) for name in columns])

    def _around(self, positions: Ints, columns: Sequence[str] | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Record batches of the shards that hold these positions, each with the position of its first row."""
        rising = np.unique(positions)
        ends = np.searchsorted(rising, self._starts)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            start, stop = int(self._starts[number]), int(self._starts[number + 1])
            for batch in self.batches(columns, shards=[self.shards[number]]):
                yield start, batch.slice(0, stop - start)
                start += batch.num_rows
                if start > rising[ends[number + 1] - 1]:
                    break


def _tables(folder: Path, names: pa.Table) -> Iterator[pa.Table]:
    dataset = Dataset(folder)
    for batch in dataset.batches(shards=names["shard"].to_pylist()):
        yield pa.Table.from_batches([batch])
