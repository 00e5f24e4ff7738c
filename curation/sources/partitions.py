"""Partitions: columns that the folders of files stand for, as in ``source=web/part-0.parquet``.

Their types are those that ``pyarrow.dataset`` infers: int32 where all values are such numbers, else strings.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from curation.errors import SourceError
from curation.sources.files import File


def partition_types(files: Sequence[File]) -> dict[str, pa.DataType]:
    """The columns that the files' folders stand for; a file whose path lacks one of them has nulls there."""
    values: dict[str, dict[str | None, None]] = {}
    for file in files:
        for key, value in file.partition:
            values.setdefault(key, {})[value] = None
    return {key: _kind(list(those)) for key, those in values.items()}


def partition_column(file: File, key: str, kind: pa.DataType, rows: int) -> pa.Array:
    """One of those columns, for some rows of a file.

    Raises:
        SourceError: the value is not of the type.
    """
    value = dict(file.partition).get(key)
    try:
        return pa.repeat(pa.scalar(value, pa.string()).cast(kind), rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(f"{file.path}: its folder says {key}={value}, which is no {kind}: {error}") from error


def check_partitions(file: File, columns: Iterable[str]) -> None:
    """Check that a file has no column of the name of a folder of its own.

    Raises:
        SourceError: it has.
    """
    for key, value in file.partition:
        if key in columns:
            raise SourceError(
                f"{file.path}: it has a column {key!r}, and its folder {key}={value} says so too: rename one of them, "
                "or give the folders below as `path`, whose own names then count for nothing"
            )


def _kind(values: list[str | None]) -> pa.DataType:
    texts = pa.array(values, pa.string())
    if texts.null_count == len(texts):
        return pa.string()
    try:
        texts.cast(pa.int32())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.int32()
