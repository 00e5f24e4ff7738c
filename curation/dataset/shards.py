"""Reading the shards of a finished dataset, a batch at a time, memory-mapped."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.dataset.manifest import Manifest
from curation.errors import SourceError

INDEX = "_index"
WEIGHT = "_weight"


def shard_names(manifest: Manifest) -> list[str]:
    """Names of the shards, in order."""
    return sorted(name for name in manifest.files if name.startswith("data-") and name.endswith(".arrow"))


def shard_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of one shard, memory-mapped.

    Raises:
        SourceError: it is missing or is no Arrow IPC stream.
    """
    try:
        with pa.memory_map(str(path)) as source:
            yield from pa.ipc.open_stream(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def shard_schema(folder: Path, manifest: Manifest) -> pa.Schema | None:
    """Schema of the shards, or None where there are none."""
    names = shard_names(manifest)
    if not names:
        return None
    try:
        with pa.memory_map(str(folder / names[0])) as source:
            return pa.ipc.open_stream(source).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{folder / names[0]}: cannot be read: {error}") from error


def kept_rows(folder: Path, manifest: Manifest, indices: Sequence[int]) -> dict[int, tuple[dict[str, Any], str]]:
    """Rows of the shards by position in the source, each with where it stands: ``"data-…arrow, row 7"``."""
    wanted = pa.array(sorted(set(indices)), pa.int64())
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for name in shard_names(manifest):
        start = 0
        for batch in shard_batches(folder / name):
            if len(found) == len(wanted):
                return found
            hits = np.flatnonzero(pc.is_in(batch.column(INDEX), wanted).to_numpy(zero_copy_only=False))
            for hit, row in zip(hits.tolist(), batch.take(pa.array(hits)).to_pylist(), strict=True):
                found[row[INDEX]] = (row, f"{name}, row {start + hit}")
            start += len(batch)
    return found
