"""Deflate: gzip sizes from the C library of Python's own zlib module, in a compiled loop without the GIL.

``gzip.compress`` allocates and frees a quarter of a megabyte for every text; here one stream for each call
is reset between texts, which gives the same bytes. A stream after x could be copied for each target, too, but
that copy (270 kB) costs more than compressing a text of ordinary length again.
"""

import ctypes
import ctypes.util
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from curation.gpu.compiled import compiled
from curation.selectors.zipfit.texts import TextBlock

GZIP_FRAME = 18


class _Stream(ctypes.Structure):
    """``z_stream`` of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@cache
def _library() -> Any:
    import zlib

    for path in (getattr(zlib, "__file__", None), ctypes.util.find_library("z")):
        try:
            library = ctypes.CDLL(path)
            library.deflateInit2_.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 5, ctypes.c_char_p, ctypes.c_int]
            library.deflateEnd.argtypes = [ctypes.c_void_p]
            library.deflateBound.argtypes = [ctypes.c_void_p, ctypes.c_ulong]
            library.deflateBound.restype = ctypes.c_ulong
            library.zlibVersion.restype = ctypes.c_char_p
        except (OSError, AttributeError, TypeError):
            continue
        return library
    return None


def available() -> bool:
    """Whether zlib's functions can be called here (its structure is that of a 64-bit system with 64-bit longs)."""
    return ctypes.sizeof(_Stream) == 112 and _library() is not None


def _caller() -> Any:
    """``int function(z_stream *stream, int flag)`` at an address, with the return value as int64."""

    @intrinsic
    def call(typing_context: Any, function: Any, stream: Any, flag: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64), ir.IntType(32)])
            address = builder.inttoptr(arguments[0], kind.as_pointer())
            flag = builder.trunc(arguments[2], ir.IntType(32))
            return builder.sext(builder.call(address, [arguments[1], flag]), ir.IntType(64))

        return types.int64(types.int64, types.int64, types.int64), generate

    return call


_call = _caller()


@compiled(nogil=True)
def _size(deflate, reset, stream, fields, counts, room, source, length):  # type: ignore[no-untyped-def]
    _call(reset, stream, 0)
    fields[0] = source
    counts[2] = length
    fields[3] = room[0]
    counts[8] = room[1]
    return fields[5] if _call(deflate, stream, 4) == 1 else -1


@compiled(nogil=True)
def _sizes(functions, stream, room, buffer, data, offsets, targets, target_offsets, own, pairs):  # type: ignore[no-untyped-def]
    deflate, reset = functions[0], functions[1]
    fields = stream
    counts = stream.view(np.uint32)
    address, text = np.int64(stream.ctypes.data), np.int64(buffer.ctypes.data)
    for i in range(len(own)):
        length = offsets[i + 1] - offsets[i]
        buffer[:length] = data[offsets[i] : offsets[i + 1]]
        own[i] = _size(deflate, reset, address, fields, counts, room, text, length)
        for j in range(pairs.shape[1]):
            end = length + target_offsets[j + 1] - target_offsets[j]
            buffer[length:end] = targets[target_offsets[j] : target_offsets[j + 1]]
            pairs[i, j] = _size(deflate, reset, address, fields, counts, room, text, end)


def sizes(rows: TextBlock, targets: TextBlock, level: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``len(gzip.compress(text, level))`` of rows alone, int64[n], and followed by each target, int64[n, T].

    Raises:
        MemoryError: zlib could not allocate its state.
    """
    library = _library()
    own = np.empty(len(rows), np.int64)
    pairs = np.empty((len(rows), len(targets)), np.int64)
    stream = np.zeros(ctypes.sizeof(_Stream) // 8, np.int64)
    address = stream.ctypes.data
    size = ctypes.sizeof(_Stream)
    if library.deflateInit2_(address, level, 8, -15, 8, 0, library.zlibVersion(), size) != 0:
        raise MemoryError("zlib could not start a compressor")
    try:
        longest = int(rows.lengths.max(initial=0) + targets.lengths.max(initial=0))
        output = np.empty(library.deflateBound(address, longest), np.uint8)
        functions = [ctypes.cast(f, ctypes.c_void_p).value for f in (library.deflate, library.deflateReset)]
        _sizes(
            np.array(functions, np.int64),
            stream,
            np.array([output.ctypes.data, len(output)], np.int64),
            np.empty(longest, np.uint8),
            rows.data,
            rows.offsets,
            targets.data,
            targets.offsets,
            own,
            pairs,
        )
    finally:
        library.deflateEnd(address)
    if min(own.min(initial=0), pairs.min(initial=0)) < 0:
        raise MemoryError("zlib could not compress a text")
    return own + GZIP_FRAME, pairs + GZIP_FRAME
