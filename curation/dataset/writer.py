"""The format of a finished dataset, and what writes it: shards, decisions, the files of ``datasets``, the manifest.

Everything is written piece by piece, in memory of a piece; each file appears whole or not at all. The order is: shards
and ``decisions.arrow``, :func:`write_dataset_files`, the report, and :func:`write_manifest` last.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dataset.manifest import (
    BATCHES,
    DECISIONS,
    QUARANTINE,
    REPORT,
    FileRecord,
    Manifest,
    sha256_of,
)
from curation.features import datasets_features, marked, told, with_features
from curation.files import atomic, write_text

INDEX = "_index"
WEIGHT = "_weight"
BATCH_ROWS = 1000
INFO = "dataset_info.json"
STATE = "state.json"
BESIDE_THE_SHARDS = (BATCHES, INFO, DECISIONS, QUARANTINE, REPORT, STATE)

_SHARD = re.compile(r"data-(\d+)-of-\d+\.arrow")


def shard_name(number: int, shards: int) -> str:
    """What ``datasets`` calls shard ``number`` of so many."""
    return f"data-{number:05d}-of-{shards:05d}.arrow"


def shard_names(manifest: Manifest) -> list[str]:
    """The shards among a manifest's files, by number."""
    numbers = {name: int(match[1]) for name in manifest.files if (match := _SHARD.fullmatch(name))}
    return sorted(numbers, key=lambda name: (numbers[name], name))


def shard_schema(source: pa.Schema, scores: Sequence[str]) -> pa.Schema:
    """Columns of a shard: the source's, then ``_index`` int64, ``_weight`` float32, and float64 for each score.

    Its metadata tells the features of the source's columns (:mod:`curation.features`), and nothing else.
    """
    fields = [
        *source.remove_metadata(),
        pa.field(INDEX, pa.int64()),
        pa.field(WEIGHT, pa.float32()),
        *(pa.field(name, pa.float64()) for name in scores),
    ]
    return with_features(pa.schema(fields), told(source.metadata))


def decisions_schema(scores: Sequence[str]) -> pa.Schema:
    """Columns of ``decisions.arrow``.

    ``reason`` is ``"kept"``, ``"bad row"``, or ``"<number>. <step>: <why>"`` such as ``"2. acquire: below the
    cut"``. Scores are null for rows that never reached the step. ``duplicate_of`` is the position of the row
    that was kept in its place, or null. ``pick`` counts from 0 in the order of the last draw; null if not kept.
    """
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            *(pa.field(name, pa.float64()) for name in scores),
            pa.field("kept", pa.bool_(), nullable=False),
            pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("pick", pa.int64()),
            pa.field("duplicate_of", pa.int64()),
        ]
    )


def kept_table(
    table: pa.Table, positions: npt.NDArray[np.int64], scores: Mapping[str, npt.NDArray[np.float64]]
) -> pa.Table:
    """Rows of the source as a shard has them.

    Args:
        table: the rows.
        positions: int64[rows], where they stand in the source.
        scores: float64[rows] by name, NaN where there is none.
    """
    table = table.append_column(INDEX, pa.array(positions))
    table = table.append_column(WEIGHT, pa.array(np.ones(len(positions), np.float32)))
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values, from_pandas=True))
    return table


def write_shard(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], batch_rows: int = BATCH_ROWS) -> None:
    """Write a shard as an Arrow IPC stream.

    Args:
        path: the file, named by :func:`shard_name`.
        schema: see :func:`shard_schema`.
        tables: the rows (see :func:`kept_table`), in pieces of any size.
        batch_rows: each piece is cut into record batches of as many rows.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        atomic(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, marked(schema)) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(schema), max_chunksize=batch_rows)


def decisions_batch(
    start: int,
    codes: npt.NDArray[np.int8],
    reasons: Sequence[str],
    scores: Mapping[str, npt.NDArray[np.float64]],
    pick: pa.Array,
    duplicate_of: pa.Array,
) -> pa.RecordBatch:
    """A run of candidates as ``decisions.arrow`` has them.

    Args:
        start: the position of the first.
        codes: int8[rows], the number of each one's reason; 0 is ``"kept"``.
        reasons: all reasons; the same for every run.
        scores: float64[rows] by name, NaN where there is none.
        pick: int64[rows], see :func:`decisions_schema`; ``duplicate_of`` likewise.
    """
    kept = codes == 0
    columns = [
        pa.array(np.arange(start, start + len(codes))),
        *(pa.array(values, from_pandas=True) for values in scores.values()),
        pa.array(kept),
        pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(reasons)),
        pa.array(kept.astype(np.float32)),
        pick,
        duplicate_of,
    ]
    return pa.record_batch(columns, schema=decisions_schema(list(scores)))


def write_decisions(path: Path, scores: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
    """Write ``decisions.arrow``, an Arrow IPC file.

    Args:
        path: the file.
        scores: names of the score columns.
        batches: all candidates in source order, see :func:`decisions_batch`.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        atomic(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, decisions_schema(scores)) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def write_dataset_files(folder: Path, schema: pa.Schema, shards: Sequence[str], fingerprint: str) -> None:
    """Write ``dataset_info.json`` and ``state.json`` as ``datasets.load_from_disk`` reads them.

    Raises:
        SourceError: ``datasets`` lacks the type of a column.
        OutputError: they cannot be written.
    """
    info = {
        **dict.fromkeys(("citation", "description", "homepage", "license"), ""),
        "features": datasets_features(schema),
    }
    write_text(folder / INFO, json.dumps(info, indent=2, sort_keys=True))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(folder / STATE, json.dumps(state, indent=2, sort_keys=True))


def file_record(path: Path, rows: int | None = None) -> FileRecord:
    """A file's size and sha256, read in blocks, and its rows where it has any."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path), rows=rows)


def write_manifest(folder: Path, manifest: Manifest, rows: Mapping[str, int]) -> Manifest:
    """Record the files beside the shards, and write the manifest: the dataset is finished.

    Args:
        folder: the dataset. What else may lie there, such as what a killed writer left, is no part of it.
        manifest: the account; its ``files`` name the shards.
        rows: how many rows other files have, by name.

    Returns:
        The manifest as it was written.
    """
    files = dict(manifest.files)
    for name in BESIDE_THE_SHARDS:
        if (folder / name).exists():
            files[name] = file_record(folder / name, rows.get(name))
    whole = manifest.model_copy(update={"files": files})
    whole.save(folder)
    return whole
