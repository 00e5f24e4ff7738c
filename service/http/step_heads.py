"""Step requests in Arrow whose head was seen before: the same bytes but for the digits of rank, step and generation.

Trainers send one head all day. What it declares is the same each time, so that all checks of it are made once, and only
the numbers behind it are looked at again.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation.service.arrow.flatbuffers import metadata_of
from curation.service.session.session import LOSS, Report, StepRequest

_MAX_HEADS = 256
_MAX_HEAD = 4096
_MAX_DIGITS = 18
_PREFIX = struct.Struct("<II")
_CONTINUED = 0xFFFFFFFF
_END = _PREFIX.pack(_CONTINUED, 0)
_MASK = bytes.maketrans(b"0123456789", b"0" * 10)
_NAMES = (b"rank", b"step", b"generation")


class _Known(NamedTuple):
    """What a head declares.

    ``spans``: where the digits of ``_NAMES`` stand, None for one that is absent. ``rest``: the head without them, cut
    at ``cuts``. ``size``: of the whole body. ``steps``, ``offsets``: how many numbers, and where. ``values``: how many
    losses, from ``values_at`` on.
    """

    spans: Sequence[tuple[int, int] | None]
    cuts: Sequence[slice]
    rest: bytes
    size: int
    wait: float
    rows: int
    steps: struct.Struct
    steps_at: int
    offsets: struct.Struct
    offsets_at: int
    values: int
    values_at: int


class StepHeads:
    """The heads that were seen lately, at most ``_MAX_HEADS`` of them."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}

    def read(self, body: bytes, max_reports: int) -> StepRequest | None:
        """The request of a body whose head is known; None where the body has to be read as any other."""
        head = _head(body)
        known = self._known.get(head.translate(_MASK))
        if known is None or len(body) != known.size or known.rows > max_reports or not body.endswith(_END):
            return None
        if b"".join([head[cut] for cut in known.cuts]) != known.rest:
            return None
        rank, step, generation = [None if span is None else int(head[span[0] : span[1]]) for span in known.spans]
        rank, reports = rank or 0, list[Report]()
        if known.rows:
            offsets = known.offsets.unpack_from(body, known.offsets_at)
            if offsets[0] < 0 or offsets[-1] > known.values or list(offsets) != sorted(offsets):
                return None
            values = np.frombuffer(body, LOSS, known.values, known.values_at)
            steps = known.steps.unpack_from(body, known.steps_at)
            reports = [Report(rank, of, values[offsets[row] : offsets[row + 1]]) for row, of in enumerate(steps)]
        return StepRequest(rank, step, reports, generation, known.wait)

    def learn(self, body: bytes, schema: pa.Schema, batches: Sequence[pa.RecordBatch], wait: float) -> None:
        """Keep the head of a body that was read and found right, where its layout is the one that clients send."""
        head = _head(body)
        if not head:
            return
        columns = _columns(body, head, schema, batches)
        spans = _spans(head, schema.metadata or {})
        if columns is None or spans is None:
            return
        edges = [0, *(edge for span in sorted(filter(None, spans)) for edge in span), len(head)]
        if edges != sorted(edges):
            return
        cuts = [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        rest = b"".join([head[cut] for cut in cuts])
        if len(self._known) >= _MAX_HEADS:
            self._known.clear()
        self._known[head.translate(_MASK)] = _Known(spans, cuts, rest, len(body), wait, *columns)


def _head(body: bytes) -> bytes:
    """All that stands before the first numbers: a schema, and the metadata of a batch or the stream's end. Empty where
    it is long, or laid out otherwise."""
    end = 0
    for _ in range(2):
        if end > min(_MAX_HEAD, len(body) - _PREFIX.size):
            return b""
        mark, size = _PREFIX.unpack_from(body, end)
        if mark != _CONTINUED:  # as Arrow's streams began before 0.15
            return b""
        end += _PREFIX.size + size
    return body[:end] if end <= _MAX_HEAD else b""


def _spans(head: bytes, metadata: Mapping[bytes, bytes]) -> list[tuple[int, int] | None] | None:
    """Where the digits of ``_NAMES`` stand; None where one of them is no number, or stands there twice."""
    spans: list[tuple[int, int] | None] = []
    for name in _NAMES:
        text = metadata.get(name, b"")
        places = [place for key, *place in metadata_of(memoryview(head)[_PREFIX.size :]) if key == name]
        if (text and (not text.isdigit() or len(text) > _MAX_DIGITS)) or len(places) > 1:
            return None
        spans.append((_PREFIX.size + places[0][0], _PREFIX.size + places[0][1]) if text else None)
    return spans


def _columns(body: bytes, head: bytes, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> tuple[Any, ...] | None:
    """The fields of :class:`_Known` that tell of columns; None where they are others, or lie elsewhere."""
    none = struct.Struct("")
    if not schema.names:
        return (0, none, 0, none, 0, 0, 0) if len(body) == len(head) else None
    if schema.names != ["step", "losses"] or len(batches) != 1:
        return None
    steps, losses = batches[0].columns
    if steps.type != pa.int64() or not pa.types.is_list(losses.type) or losses.type.value_type != pa.float32():
        return None
    rows, values, start = len(steps), len(losses.values), pa.py_buffer(body).address
    places = []
    for array, size in ((steps, 8 * rows), (losses, 4 * (rows + 1)), (losses.values, 4 * values)):
        valid, numbers = array.buffers()[:2]
        # A copy lies elsewhere: pyarrow made one of what was compressed.
        at = -1 if numbers is None else numbers.address - start
        if valid is not None or at < len(head) or at + size > len(body) - len(_END):
            return None
        places.append(at)
    steps_at, offsets_at, values_at = places
    return rows, struct.Struct(f"<{rows}q"), steps_at, struct.Struct(f"<{rows + 1}i"), offsets_at, values, values_at
