"""Arrow IPC files and streams, and saved Hugging Face datasets, which are folders of streams.

Local files are memory maps: of an uncompressed batch the rows that are asked for are copied out, and nothing else is
looked at. A file is read from any record batch on; a stream has no index, so a reader walks through it (over headers
alone where it is not compressed).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curation.errors import SourceError
from curation.features import beyond_types, told
from curation.sources import files
from curation.sources.files import File
from curation.sources.listing import Listing, folders

EXTENSIONS = (".arrow", ".arrows", ".feather", ".ipc")
_FILE_MAGIC = b"ARROW1"


def arrow_reader(file: File) -> "FileReader | StreamReader":
    """Open an Arrow IPC file or stream, whichever it is."""
    source = files.open_arrow(file)
    magic = source.read(len(_FILE_MAGIC))
    source.seek(0)
    return FileReader(source) if magic == _FILE_MAGIC else StreamReader(source)


class FileReader:
    """One open Arrow IPC file (Feather version 2)."""

    mapped = True

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self.schema: pa.Schema = pa.ipc.open_file(source).schema
        counter = pa.ipc.open_file(source, options=_lightest(self.schema))
        sizes = [counter.get_batch(number).num_rows for number in range(counter.num_record_batches)]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self.rows = int(self._starts[-1])

    def runs(self, columns: Sequence[str]) -> list[tuple[int, int]]:
        """One, as heavy as if all rows were like those of the first record batch."""
        return _like_the_first(self.batches(0, columns), self.rows)

    def start(self, row: int) -> int:
        """The first row of the record batch that ``row`` stands in."""
        return int(self._starts[np.searchsorted(self._starts, row, side="right") - 1])

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The record batches from ``start`` on."""
        reader = pa.ipc.open_file(self._source, options=_only(self.schema, columns))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(first, len(self._starts) - 1):
            yield reader.get_batch(number)


class StreamReader:
    """One open Arrow IPC stream."""

    mapped = True

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self.schema: pa.Schema = pa.ipc.open_stream(source).schema
        self._rows: int | None = None

    @property
    def rows(self) -> int:
        """The sum of the batches' lengths: a walk over the stream that decodes one column at most."""
        if self._rows is None:
            self._source.seek(0)
            batches = pa.ipc.open_stream(self._source, options=_lightest(self.schema))
            self._rows = sum(batch.num_rows for batch in batches)
        return self._rows

    def runs(self, columns: Sequence[str]) -> list[tuple[int, int]]:
        """One, as heavy as if all rows were like those of the first record batch."""
        return _like_the_first(self.batches(0, columns), self.rows)

    def start(self, row: int) -> int:
        """0: a stream is read from its start."""
        return 0

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All record batches."""
        self._source.seek(0)
        yield from pa.ipc.open_stream(self._source, options=_only(self.schema, columns))


def _like_the_first(batches: Iterator[pa.RecordBatch], rows: int) -> list[tuple[int, int]]:
    first = next((batch for batch in batches if batch.num_rows), None)
    return [] if first is None else [(rows, rows * first.nbytes // first.num_rows)]


def _lightest(schema: pa.Schema) -> pa.ipc.IpcReadOptions:
    """For counting rows: one column, the one that costs least to decompress."""

    def weight(number: int) -> int:
        kind = schema.field(number).type
        return int(kind.bit_width) if pa.types.is_primitive(kind) else 1 << 30

    lightest = sorted(range(len(schema)), key=weight)[:1]
    return pa.ipc.IpcReadOptions(included_fields=lightest, use_threads=False)


def _only(schema: pa.Schema, columns: Sequence[str]) -> pa.ipc.IpcReadOptions:
    fields = sorted(schema.get_field_index(name) for name in columns)
    return pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)


def dataset_listing(paths: str | Sequence[str]) -> Listing:
    """The Arrow streams of datasets that ``datasets.Dataset.save_to_disk`` wrote, in each one's own order.

    Raises:
        SourceError: a path holds no saved dataset, or one that must be split or flattened first.
    """
    found = folders([paths] if isinstance(paths, str) else paths)
    return Listing(tuple(file for folder in found for file in _files_of(folder)))


def dataset_features(file: File, schema: pa.Schema) -> Mapping[str, Any]:
    """The features of a saved dataset's columns: those of its ``dataset_info.json``, else those of the stream."""
    fs, inner = files.filesystem(f"{file.path.rpartition('/')[0]}/dataset_info.json")
    try:
        return told(schema.metadata) | beyond_types(json.loads(fs.cat_file(inner)).get("features"))
    except FileNotFoundError:
        return told(schema.metadata)
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(f"{inner}: cannot be read: {error!r}") from error


def _files_of(folder: str) -> list[File]:
    fs, inner = files.filesystem(folder)
    state = f"{inner}/state.json"
    if fs.exists(f"{inner}/dataset_dict.json"):
        splits = json.loads(fs.cat_file(f"{inner}/dataset_dict.json")).get("splits", [])
        raise SourceError(f"{folder}: a dataset of several splits; name one of them: {', '.join(splits)}")
    if not fs.exists(state):
        raise SourceError(f"{folder}: not a saved dataset: it holds no state.json")
    try:
        account = json.loads(fs.cat_file(state))
        names = [entry["filename"] for entry in account["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder}/state.json: cannot be read: {error!r}") from error
    if account.get("_indices_files") or account.get("_indices_data_files"):
        raise SourceError(f"{folder}: saved with an index mapping; call flatten_indices() and save it again")
    if not names:
        raise SourceError(f"{folder}: state.json lists no data file")
    return [files.stat(f"{folder.rstrip('/')}/{name}") for name in names]
