"""Rows that a program hands over, made readable for the tasks of a run.

A table in memory is written once into the folder of the run, as Arrow, and goes when the run is done: a second copy of
the data for as long as it works. A Hugging Face dataset that stands in Arrow files as it is costs nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.arrow import contiguous
from curation.dataset.manifest import sha256_of
from curation.errors import SourceError
from curation.features import beyond_types, told, with_features
from curation.files import atomic
from curation.recipe.model import BLOCK_BYTES, FileSource, MemorySource
from curation.sources import open_source
from curation.sources.base import BadRow, Block, InputRecord, Source

ROWS = 16_384


@dataclass(frozen=True)
class SpilledSource:
    """Rows in memory as a :class:`curation.sources.base.Source`, through the file that they were written to."""

    spec: MemorySource
    path: Path

    @cached_property
    def _file(self) -> Source:
        return open_source(FileSource(format="arrow", path=str(self.path)))

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._file.schema

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of how they are read."""
        return self._file.notes

    def inputs(self) -> list[InputRecord]:
        """One record for all rows."""
        size = self.path.stat().st_size
        record = InputRecord(path=self.spec.kind, bytes=size, rows=self.spec.rows, fingerprint=self.spec.fingerprint)
        return [record]

    def blocks(self, rows: int, size: int = BLOCK_BYTES) -> list[Block]:
        """Cut all positions into blocks of ``rows`` rows, or of fewer where these have about ``size`` bytes."""
        return self._file.blocks(rows, size)

    def read(self, block: Block, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
        """Read a block; no row is bad."""
        return self._file.read(block, columns)

    def locate(self, index: int) -> tuple[str, int]:
        """What the rows were, and the position."""
        return self.spec.kind, index


def files_behind(rows: Any) -> FileSource | None:
    """The files of a Hugging Face dataset that stands in Arrow files as it is; None for all else."""
    if type(rows).__module__.partition(".")[0] != "datasets":
        return None
    from datasets import Dataset
    from datasets.table import ConcatenationTable, MemoryMappedTable

    if not isinstance(rows, Dataset) or rows._indices is not None:
        return None
    table = rows.data
    parts = [part for line in table.blocks for part in line] if isinstance(table, ConcatenationTable) else [table]
    whole = all(
        isinstance(part, MemoryMappedTable)
        and all(change[0] == "replace_schema_metadata" for change in part.replays or ())
        for part in parts
    )
    if not whole or (isinstance(table, ConcatenationTable) and any(len(line) > 1 for line in table.blocks)):
        return None
    paths = [str(part.path) for part in parts]
    wanted = beyond_types(rows.features.to_dict())
    if any(told(pa.ipc.open_stream(pa.memory_map(path)).schema.metadata) != wanted for path in set(paths)):
        return None
    # A source is read in the order of its files' names, each file once.
    return FileSource(format="arrow", path=paths) if paths == sorted(set(paths)) else None


def spill(rows: Any, folder: Path) -> tuple[MemorySource, Path]:
    """Write rows to an Arrow file, and say what they were; the same rows get the same name.

    Args:
        rows: a ``pyarrow.Table``, a ``datasets.Dataset`` or a ``ray.data.Dataset``.
        folder: where the file goes.

    Raises:
        SourceError: they are something else, or have no rows.
    """
    kind = f"{type(rows).__module__.partition('.')[0]}.{type(rows).__qualname__}"
    fresh = folder / "source.arrow"
    try:
        count = _write(rows, kind, fresh)
    except pa.ArrowException as error:
        raise SourceError(f"the source, a {kind}, cannot be written as Arrow: {error}") from error
    if count == 0:
        fresh.unlink(missing_ok=True)
        raise SourceError(f"the source, a {kind}, has no rows")
    digest = sha256_of(fresh)
    path = fresh.with_name(f"source-{digest[:16]}.arrow")
    fresh.replace(path)
    return MemorySource(format="memory", kind=kind, rows=count, fingerprint=f"sha256:{digest}"), path


def _write(rows: Any, kind: str, path: Path) -> int:
    """Write rows to an Arrow file; returns how many there were."""
    count = 0
    with atomic(path) as temporary, _tables(rows, kind) as tables, pa.OSFile(str(temporary), "wb") as sink:
        writer = None
        for table in map(_readable, tables):
            writer = writer or pa.ipc.new_file(sink, table.schema)
            for part in contiguous(table):
                writer.write_table(part)
            count += len(table)
        if writer is not None:
            writer.close()
    return count


def _readable(table: pa.Table) -> pa.Table:
    """A table as its file has it: with the features of ``datasets``, and without other metadata or dictionaries.

    A file has one dictionary a column, and chunks may have one each; sources are read without them anyway.
    """
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    schema = with_features(pa.schema(fields), told(table.schema.metadata))
    return table.cast(schema) if fields != list(table.schema) else table.replace_schema_metadata(schema.metadata)


@contextmanager
def _tables(rows: Any, kind: str) -> Iterator[Iterator[pa.Table]]:
    """Tables of some thousand rows each, in order."""
    if isinstance(rows, pa.Table):
        yield (rows.slice(start, ROWS) for start in range(0, len(rows), ROWS))
    elif kind.startswith("datasets.") and hasattr(rows, "iter"):
        yield rows.with_format("arrow").iter(ROWS)
    elif kind.startswith("ray.") and hasattr(rows, "iter_batches"):
        from ray.data import DataContext

        options = DataContext.get_current().execution_options
        before, options.preserve_order = options.preserve_order, True
        try:
            yield rows.iter_batches(batch_size=ROWS, batch_format="pyarrow")
        finally:
            options.preserve_order = before
    else:
        raise SourceError(
            f"source is a {kind}: give a FileSource, a StdlibSource, a path, a pyarrow.Table, a datasets.Dataset or a "
            "ray.data.Dataset"
        )
