"""Reference model's embeddings, computed once and read by index (Evans et al. 2024, section 3.3).

JEST's reference never changes, so its embeddings of the whole data set are worked out before training and
then memory-mapped: a step reads the super-batch's rows, B·D numbers a side, and the model itself is not
needed any more.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from curation.errors import SourceError
from curation.pair import Pair
from curation.selection import as_positions

_SIDES = ("a", "b")


class EmbeddingCache:
    """Memory-mapped embeddings of N pairs.

    Args:
        path: what :meth:`write` wrote (an Arrow IPC file or stream whose columns ``a`` and ``b`` are fixed-size
            lists of float16 or float32, with ``scale`` and ``bias`` in the schema's metadata), or a folder with
            ``a.npy`` and ``b.npy`` of shape [N, D], and ``loss.json`` with ``scale`` and ``bias`` where they
            are not 1 and 0.

    Raises:
        SourceError: a file is missing, or is not of that form.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            parts, loss = _read_folder(self.path) if self.path.is_dir() else _read_arrow(self.path)
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise SourceError(f"{self.path}: not an embedding cache: {error}") from error
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts["a"])])
        self.scale, self.bias = float(loss.get("scale", 1.0)), float(loss.get("bias", 0.0))

    def __len__(self) -> int:
        """N, the number of pairs."""
        return int(self._starts[-1])

    def pair(self, indices: npt.ArrayLike, *, device: torch.device | str = "cpu") -> Pair:
        """The rows at these positions, as tensors of the stored dtype on ``device``; O(len(indices)·D).

        Raises:
            ValueError: a position is out of range.
            TypeError: positions are not integers.
        """
        positions = as_positions(indices, "indices")
        bad = positions[(positions < 0) | (positions >= len(self))]
        if len(bad):
            raise ValueError(f"{self.path}: row {bad[0]} is out of range: the cache has {len(self)}")
        a, b = (torch.from_numpy(self._gather(side, positions)).to(device) for side in _SIDES)
        return Pair(a, b, self.scale, self.bias)

    @staticmethod
    def write(path: str | os.PathLike[str], batches: Iterable[Pair]) -> None:
        """Write the pairs of consecutive batches as one Arrow IPC file; a reader sees all of it or none.

        Args:
            path: where; an existing file is replaced.
            batches: in the order of the data set; one dtype (float16, float32; bfloat16 is widened to float32),
                one width, one scale and bias.

        Raises:
            ValueError: there is no batch, or one differs from the first.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        writer: Any = None
        first: tuple[object, ...] = ()
        try:
            for number, pair in enumerate(batches):
                arrays = [_as_list(side) for side in (pair.a, pair.b)]
                form = (*(array.type for array in arrays), *pair.factors)
                if writer is None:
                    first = form
                    loss = dict(zip(("scale", "bias"), map(repr, pair.factors), strict=True))
                    schema = pa.schema(
                        [(n, array.type) for n, array in zip(_SIDES, arrays, strict=True)], metadata=loss
                    )
                    writer = pa.ipc.new_file(str(temporary), schema)
                if form != first:
                    raise ValueError(f"batch {number} has (a, b, scale, bias) of {form}, the first has {first}")
                writer.write_batch(pa.record_batch(arrays, schema=schema))
            if writer is None:
                raise ValueError("there is no batch to write")
            writer.close()
            temporary.replace(target)
        finally:
            if writer is not None:
                writer.close()
            temporary.unlink(missing_ok=True)

    def _gather(self, side: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        parts = self._parts[side]
        if len(parts) == 1:
            return np.ascontiguousarray(parts[0][positions])
        out = np.empty((len(positions), parts[0].shape[1]), parts[0].dtype)
        which = np.searchsorted(self._starts, positions, side="right") - 1
        order = np.argsort(which, kind="stable")
        ends = np.searchsorted(which[order], np.arange(len(parts) + 1))
        for number in np.unique(which):
            rows = order[ends[number] : ends[number + 1]]
            out[rows] = parts[number][positions[rows] - self._starts[number]]
        return out


def _read_folder(path: Path) -> tuple[dict[str, list[npt.NDArray[Any]]], dict[str, Any]]:
    sides = {side: [np.load(path / f"{side}.npy", mmap_mode="r", allow_pickle=False)] for side in _SIDES}
    shapes = [sides[side][0].shape for side in _SIDES]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(f"a.npy has shape {shapes[0]} and b.npy {shapes[1]}: both must be [N, D]")
    settings = path / "loss.json"
    return sides, json.loads(settings.read_text()) if settings.exists() else {}


def _read_arrow(path: Path) -> tuple[dict[str, list[npt.NDArray[Any]]], dict[str, Any]]:
    source = pa.memory_map(str(path))
    try:
        table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_stream(source).read_all()
    sides = {}
    for side in _SIDES:
        kind = table.schema.field(side).type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ValueError(f"column {side} is {kind}, not a fixed-size list of floats")
        if table[side].null_count:
            raise ValueError(f"column {side} has {table[side].null_count} nulls")
        # flatten() honours a chunk's offset, as .values would not.
        sides[side] = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, kind.list_size) for chunk in table[side].chunks
        ]
    if sides["a"] and sides["a"][0].shape[1] != sides["b"][0].shape[1]:
        raise ValueError(f"a has width {sides['a'][0].shape[1]}, b {sides['b'][0].shape[1]}")
    if not len(table):
        raise ValueError("it has no rows")
    metadata = table.schema.metadata or {}
    return sides, {key.decode(): float(metadata[key]) for key in (b"scale", b"bias") if key in metadata}


def _as_list(side: Any) -> pa.Array:
    if isinstance(side, torch.Tensor):
        side = (side.float() if side.dtype == torch.bfloat16 else side).detach().cpu().numpy()
    flat = pa.array(np.ascontiguousarray(side, side.dtype.newbyteorder("=")).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, side.shape[1])
