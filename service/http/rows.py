"""Rows of a curated dataset as a person reads them: long values cut short, pictures apart."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.dataset import Dataset
from curation.errors import SourceError
from curation.service.datasets import Datasets
from curation.service.errors import Refusal

LONGEST = 4000
ITEMS = 8
EXACT = 1 << 53
MAX_IMAGE_BYTES = 16 << 20
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)

Cell = str | int | float | bool | None


class Rows(NamedTuple):
    """Rows of a dataset. ``text``: the column that says most to a reader; ``images``: columns that hold pictures."""

    columns: list[str]
    text: str | None
    images: list[str]
    cells: list[list[Cell]]


class Image(NamedTuple):
    """A picture and its type, one of those that no browser takes for a document."""

    kind: str
    data: bytes


def read_rows(datasets: Datasets, name: str, positions: npt.NDArray[np.int64]) -> Rows:
    """Some rows of a dataset, in the order asked.

    Raises:
        Refusal: there is no such dataset or row, or its files cannot be read.
    """
    dataset = datasets.open(name)
    rows, columns, text = _read(dataset, name, positions)
    images = [column for column in columns if any(image_of(row[column]) for row in rows)]
    return Rows(columns, text, images, [[_cell(row[column]) for column in columns] for row in rows])


def read_image(datasets: Datasets, name: str, position: int, column: str) -> Image:
    """The picture in one cell.

    Raises:
        Refusal: there is no such dataset, row or column, its files cannot be read, or the cell holds no picture.
    """
    dataset = datasets.open(name)
    if position >= len(dataset):
        raise Refusal("not-found", f"dataset {name!r} has rows 0 to {len(dataset) - 1}, not {position}")
    rows, columns, _ = _read(dataset, name, np.array([position]))
    if column not in columns:
        raise Refusal("not-found", f"dataset {name!r} has no column {column[:128]!r}")
    image = image_of(rows[0][column])
    if image is None:
        raise Refusal("not-found", f"column {column!r} of row {position} holds no PNG, JPEG, GIF or WebP")
    if len(image.data) > MAX_IMAGE_BYTES:
        raise Refusal("not-found", f"the picture has {len(image.data)} bytes; up to {MAX_IMAGE_BYTES} are shown")
    return image


def image_of(value: Any) -> Image | None:
    """The picture that a cell holds, as bytes or as Hugging Face's {bytes, path}; known by its first bytes alone."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        return None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Image("image/webp", data)
    return next((Image(kind, data) for magic, kind in _MAGIC if data.startswith(magic)), None)


def _read(
    dataset: Dataset, name: str, positions: npt.NDArray[np.int64]
) -> tuple[list[dict[str, Any]], list[str], str | None]:
    try:
        return dataset.rows(positions).to_pylist(), dataset.schema.names, dataset.text_column
    except (SourceError, IndexError) as error:
        # The error names paths of the server.
        file = next((shard for shard in dataset.shards if shard in str(error)), "a shard")
        raise Refusal("bad-dataset", f"{file} of dataset {name!r} cannot be read") from error


def _cell(value: Any) -> Cell:
    image = image_of(value)
    if image is not None:
        return f"{image.kind}, {len(image.data):,} bytes"
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}… ({len(value):,} characters)"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list) and len(value) > ITEMS:
        return f"{json.dumps(value[:ITEMS], default=str)[:-1]}, … ({len(value):,} items)"[:LONGEST]
    return json.dumps(value, default=str, ensure_ascii=False)[:LONGEST]
