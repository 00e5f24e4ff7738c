"""Shortlist of candidates that are worth an exact alignment: an estimate of it from a few of the targets.

Alignment is a mean over targets of distances that vary together (a text close to one function is close to most),
so a weighted sum of the distances to m well-chosen targets ranks texts almost as the mean over all T does. Both
are learned from exact distances of a small sample of the candidates: orthogonal matching pursuit picks the
targets whose distances explain the sample's alignments, least squares weighs them. All candidates are then
estimated in O(N · m) compressions, and only the best few per cent are scored exactly.

It is an estimate: what it leaves out is lost. Tropp & Gilbert 2007 for the pursuit.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.selectors.zipfit.texts import TextBlock, text_blocks

SAMPLE = 512
MOST_COLUMNS = 24
_LEAST_COLUMNS = 12
Floats = npt.NDArray[np.float64]


@contextmanager
def rereadable(texts: Iterable[Any]) -> Iterator[Any]:
    """A chunked Arrow array that can be read twice: itself, or a copy of a stream in a temporary file.

    Raises:
        ValueError, TypeError: as :func:`~curation.selectors.zipfit.texts.text_blocks`.
    """
    if isinstance(texts, pa.Array):
        texts = pa.chunked_array([texts])
    if isinstance(texts, pa.ChunkedArray) and texts.type in (pa.string(), pa.large_string()):
        yield texts
        return
    schema = pa.schema([("text", pa.large_string())])
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for block in text_blocks(texts):
                writer.write_batch(pa.record_batch([_as_arrow(block)], schema=schema))
        file.flush()
        with pa.memory_map(file.name) as mapped:
            yield pa.ipc.open_file(mapped).read_all()["text"]


def _as_arrow(block: TextBlock) -> Any:
    return pa.LargeStringArray.from_buffers(len(block), pa.py_buffer(block.offsets), pa.py_buffer(block.data))


def sample(size: int) -> npt.NDArray[np.int64]:
    """int64[min(512, N)], distinct positions, rising; the same for every call."""
    return np.sort(np.random.default_rng(0).choice(size, min(SAMPLE, size), replace=False)).astype(np.int64)


def column_count(targets: int) -> int:
    """How many of T targets the estimate looks at: a tenth, from 12 to 24."""
    return min(max(targets // 10, _LEAST_COLUMNS), MOST_COLUMNS)


def pick_columns(distances: Floats, count: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Columns of a matrix and weights with which they give the mean of all columns, nearly.

    Args:
        distances: float64[R, T].
        count: how many columns to pick, at most.

    Returns:
        int64[m] columns, in the order picked, and float64[m] weights.
    """
    centred = distances - distances.mean(axis=0)
    means = centred.mean(axis=1)
    norms = np.linalg.norm(centred, axis=0)
    norms[norms == 0] = np.inf
    chosen: list[int] = []
    weights = np.empty(0)
    residual = means
    for _ in range(min(count, *distances.shape)):
        gain = np.abs(residual @ centred) / norms
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        weights = np.linalg.lstsq(centred[:, chosen], means)[0]
        residual = means - centred[:, chosen] @ weights
    return np.array(chosen, np.int64), weights


def highest(estimates: Floats, count: int) -> npt.NDArray[np.int64]:
    """int64[count], positions of the highest estimates, rising; ties go to the lower position."""
    order = np.lexsort((np.arange(len(estimates)), -estimates))
    return np.sort(order[:count])
