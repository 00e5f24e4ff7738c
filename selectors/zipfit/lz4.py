"""LZ4: how many bytes it needs for x ⊕ t, for one x and many t, without writing any of them.

An LZ4 encoder reads from left to right, so everything it does before it looks at the last bytes of x is the
same for every t. Here x is encoded once, up to the last decision that needs no byte of t; from there each
t goes on alone, and its changes to the hash table are undone afterwards. Only sizes are counted.

The sizes are those of ``LZ4_compress_fast`` (acceleration 1, 16-bit table), which serves inputs of up to
64 KiB as one block; :mod:`curation.selectors.zipfit.codecs` checks that against the installed library before it
trusts it. Cost: O(len(x) + Σ len(t)) per row, and 1.6 MB of scratch for each call.

Block format: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.selectors.zipfit.addresses import (
    copy_bytes,
    equal_ahead,
    equal_behind,
    get16,
    get32,
    get64,
    put16,
    put64,
)

BLOCK_LIMIT = 65_536
_FRONT = 8
_BACK = 64
_SLOTS = 8192
_MIN_LENGTH = 13
_LAST_START = 11
_LAST_LITERALS = 5
_SCRATCH = 2 * 8 * _SLOTS + 2 * BLOCK_LIMIT * (8 + 2) + _FRONT + BLOCK_LIMIT + _BACK


@compiled(nogil=True, inline="always")
def _word(buffer, position):  # type: ignore[no-untyped-def]
    return get32(buffer + position, 0)


@compiled(nogil=True, inline="always")
def _slot(word):  # type: ignore[no-untyped-def]
    return ((word * 2654435761) & 0xFFFFFFFF) >> 19


@compiled(nogil=True, inline="always")
def _div255(value):  # type: ignore[no-untyped-def]
    """``value // 255`` for 0 ≤ value < 65,535 + 255, without a division."""
    return (value + 1 + ((value + 1) >> 8)) >> 8


@compiled(nogil=True, inline="always")
def _match_end(buffer, position, match, end):  # type: ignore[no-untyped-def]
    stop = position + 4
    shift = position - match
    while True:
        equal = equal_ahead(buffer + stop, buffer + stop - shift)
        stop += equal
        if equal < 8 or stop >= end:
            return min(stop, end - _LAST_LITERALS)


@compiled(nogil=True, inline="always")
def _sequence(buffer, position, match, stop, anchor, written, need):  # type: ignore[no-untyped-def]
    """Bytes written after one sequence of literals and a match, and the room the library asks for on the way."""
    most = min(position - anchor, match - _FRONT)
    back = np.int64(0)
    while back < most:
        equal = equal_behind(buffer + position - back - 8, buffer + match - back - 8)
        back += equal
        if equal < 8:
            break
    start = position - min(back, most)
    literals = start - anchor
    need = max(need, written + literals + 9 + _div255(literals))
    written += literals + _div255(literals + 240) + 3
    code = _div255(stop - start + 236)
    return written + code, max(need, written + 6 + code)


@compiled(nogil=True)
def _clear(table, buffer):  # type: ignore[no-untyped-def]
    """An empty slot of the library's table is position 0."""
    entry = (_word(buffer, _FRONT) << 32) | _FRONT
    for slot in range(_SLOTS):
        put64(table, slot, entry)


@compiled(nogil=True)
def _encode(buffer, table, slots, olds, position, tries, anchor, written, need, end, limit, horizon):  # type: ignore[no-untyped-def]
    """Encode on from a state until ``limit``, and stop before anything that reads past ``horizon``.

    The state is where the next match is looked for, how often since the last one (the step grows with it),
    where the unwritten literals start, the bytes written, and the room that the library's checks demand.
    """
    changes = 0
    last_start = end - _LAST_START
    while position < limit and position + 4 <= horizon:
        word = _word(buffer, position)
        step = max(1, tries >> 6)
        if position + step > last_start:
            break
        slot = _slot(word)
        entry = get64(table, slot)
        put16(slots, changes, slot)
        put64(olds, changes, entry)
        changes += 1
        put64(table, slot, (word << 32) | position)
        if (entry ^ (word << 32)) >> 32 != 0:
            position += step
            tries += 1
            continue
        match = entry & 0xFFFFFFFF
        stop = _match_end(buffer, position, match, end)
        if stop + 2 > horizon:
            changes -= 1
            put64(table, slot, entry)
            break
        written, need = _sequence(buffer, position, match, stop, anchor, written, need)
        position = anchor = stop
        tries = 62
        if stop >= last_start:
            break
        word = _word(buffer, stop - 2)
        slot = _slot(word)
        put16(slots, changes, slot)
        put64(olds, changes, get64(table, slot))
        changes += 1
        put64(table, slot, (word << 32) | (stop - 2))
    return position, tries, anchor, written, need, changes


@compiled(nogil=True)
def _encode_target(buffer, recent, ids, first, position, tries, anchor, written, need, end):  # type: ignore[no-untyped-def]
    """The same inside a target, whose slots are numbered densely: ``recent[ids[p]]`` is position p's slot."""
    last_start = end - _LAST_START
    while True:
        step = max(1, tries >> 6)
        if position + step > last_start:
            break
        word = _word(buffer, position)
        slot = get16(ids, first + position)
        entry = get64(recent, slot)
        put64(recent, slot, (word << 32) | position)
        if (entry ^ (word << 32)) >> 32 != 0:
            position += step
            tries += 1
            continue
        match = entry & 0xFFFFFFFF
        stop = _match_end(buffer, position, match, end)
        written, need = _sequence(buffer, position, match, stop, anchor, written, need)
        position = anchor = stop
        tries = 62
        if stop >= last_start:
            break
        put64(recent, get16(ids, first + stop - 2), (_word(buffer, stop - 2) << 32) | (stop - 2))
    return anchor, written, need


@compiled(nogil=True)
def _finish(anchor, written, need, end):  # type: ignore[no-untyped-def]
    """The block's size once what is left goes out as literals; a block that would not shrink is stored."""
    run = end - anchor
    total = end - _FRONT
    written += run + 1 + _div255(run + 240)
    return total if max(need, written) > total - 1 else written


@compiled(nogil=True)
def _number_slots(targets, offsets, number, ids, slots, slot_offsets):  # type: ignore[no-untyped-def]
    data = np.int64(targets.ctypes.data)
    total = 0
    for j in range(len(offsets) - 1):
        number[:] = -1
        for p in range(offsets[j], offsets[j + 1] - 3):
            slot = _slot(_word(data, p))
            if number[slot] < 0:
                number[slot] = total - slot_offsets[j]
                slots[total] = slot
                total += 1
            ids[p] = number[slot]
        slot_offsets[j + 1] = total


@compiled(nogil=True)
def _block_sizes(data, offsets, targets, target_offsets, ids, slots, slot_offsets, scratch, own, out):  # type: ignore[no-untyped-def]
    rows, count = len(offsets) - 1, len(target_offsets) - 1
    data, targets = np.int64(data.ctypes.data), np.int64(targets.ctypes.data)
    ids, slots = np.int64(ids.ctypes.data), np.int64(slots.ctypes.data)
    table = np.int64(scratch.ctypes.data)
    recent = table + 8 * _SLOTS
    olds = recent + 8 * _SLOTS
    changed = olds + 16 * BLOCK_LIMIT
    buffer = changed + 4 * BLOCK_LIMIT
    shortest = BLOCK_LIMIT
    for j in range(count):
        shortest = min(shortest, target_offsets[j + 1] - target_offsets[j])

    for i in range(rows):
        length = offsets[i + 1] - offsets[i]
        if length > BLOCK_LIMIT:
            own[i] = -1
            out[i, :] = -1
            continue
        border = _FRONT + length
        copy_bytes(buffer + _FRONT, data + offsets[i], length)
        first = _FRONT + np.int64(1)
        start = np.int64(_FRONT)
        zero = np.int64(0)

        anchor, written, need = start, zero, zero
        if length >= _MIN_LENGTH:
            _clear(table, buffer)
            _, _, anchor, written, need, _ = _encode(
                buffer, table, changed, olds, first, 63, start, zero, zero, border, border, border
            )
        own[i] = _finish(anchor, written, need, border)

        position, tries, anchor, written, need = first, np.int64(63), start, zero, zero
        shared = length >= 4 and length + shortest >= _MIN_LENGTH
        if shared:
            _clear(table, buffer)
            least = border + shortest
            horizon = min(border, least - _LAST_START + 1)
            position, tries, anchor, written, need, _ = _encode(
                buffer, table, changed, olds, first, 63, start, zero, zero, least, horizon, horizon
            )
        for j in range(count):
            size = target_offsets[j + 1] - target_offsets[j]
            end = border + size
            if length + size > BLOCK_LIMIT:
                out[i, j] = -1
                continue
            if length + size < _MIN_LENGTH:
                out[i, j] = _finish(start, zero, zero, end)
                continue
            copy_bytes(buffer + border, targets + target_offsets[j], size)
            if not shared:
                _clear(table, buffer)
            at, misses, literals, total, room, changes = _encode(
                buffer, table, changed, olds, position, tries, anchor, written, need, end, border, end
            )
            for number in range(slot_offsets[j + 1] - slot_offsets[j]):
                put64(recent, number, get64(table, get16(slots, slot_offsets[j] + number)))
            literals, total, room = _encode_target(
                buffer, recent, ids, target_offsets[j] - border, at, misses, literals, total, room, end
            )
            out[i, j] = _finish(literals, total, room, end)
            for c in range(changes - 1, -1, -1):
                put64(table, get16(changed, c), get64(olds, c))


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets' bytes, one after another, with their hash slots numbered densely for each target.

    Args:
        data: uint8[M]; target j is ``data[offsets[j]:offsets[j + 1]]``.
        offsets: int64[T + 1].
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        ids = np.zeros(len(self.data), np.uint16)
        slots = np.empty(len(self.data), np.uint16)
        slot_offsets = np.zeros(len(self.offsets), np.int64)
        _number_slots(self.data, self.offsets, np.empty(_SLOTS, np.int64), ids, slots, slot_offsets)
        object.__setattr__(self, "_numbers", (ids, slots[: slot_offsets[-1]].copy(), slot_offsets))

    def sizes(
        self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Sizes of the LZ4 blocks of rows, alone and followed by each target.

        Args:
            data: uint8, the rows' bytes; row i is ``data[offsets[i]:offsets[i + 1]]``.
            offsets: int64[n + 1].

        Returns:
            int32[n] and int32[n, T]; -1 where the text is longer than 64 KiB.
        """
        rows = len(offsets) - 1
        own = np.empty(rows, np.int32)
        out = np.empty((rows, len(self.offsets) - 1), np.int32)
        scratch = np.zeros(_SCRATCH, np.uint8)
        _block_sizes(data, offsets, self.data, self.offsets, *self._numbers, scratch, own, out)  # type: ignore[attr-defined]
        return own, out
