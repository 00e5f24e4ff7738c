"""Addresses: unaligned reads and writes that compiled loops need and numba does not have."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _loader(bits: int) -> Any:
    """Read one unaligned, unsigned integer of ``items[index]``, where ``items`` is an address."""

    @intrinsic
    def load(typing_context: Any, items: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(builder.gep(base, [arguments[1]]), align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64, types.int64), generate

    return load


def _storer(bits: int) -> Any:
    """Write ``items[index] = value``, where ``items`` is an address."""

    @intrinsic
    def store(typing_context: Any, items: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = arguments[2] if bits == 64 else builder.trunc(arguments[2], ir.IntType(bits))
            builder.store(value, builder.gep(base, [arguments[1]]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return store


def _agreement(*, forward: bool) -> Any:
    """How many of the eight bytes from two addresses on agree, counted from their first (or last) on: 0 to 8."""

    @intrinsic
    def equal(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, second = (
                builder.load(builder.inttoptr(address, ir.IntType(64).as_pointer()), align=1) for address in arguments
            )
            zeros = (builder.cttz if forward else builder.ctlz)(
                builder.xor(first, second), ir.Constant(ir.IntType(1), 0)
            )
            return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

        return types.int64(types.int64, types.int64), generate

    return equal


def _copier() -> Any:
    """Copy bytes from one address to another."""

    @intrinsic
    def copy(typing_context: Any, target: Any, source: Any, length: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            byte = ir.IntType(8).as_pointer()
            target, source = (builder.inttoptr(address, byte) for address in arguments[:2])
            raw_memcpy: Any = cgutils.raw_memcpy
            raw_memcpy(builder, target, source, arguments[2], 1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return copy


# Numba's own array access counts references and tests for negative indices in the innermost loop, which
# makes it three times slower; addresses do neither. The arrays behind them belong to the caller.
get16, get32, get64 = _loader(16), _loader(32), _loader(64)
put16, put64 = _storer(16), _storer(64)
equal_ahead, equal_behind = _agreement(forward=True), _agreement(forward=False)
copy_bytes = _copier()
