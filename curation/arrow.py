"""Which Arrow types stand for the same column in different files."""

import pyarrow as pa
from pyarrow import types


def plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column is read as: dictionaries and run-ends decoded, views as ordinary arrays."""
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    return kind


def lossless(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of one type has an equal one in the other."""
    found = plain(found)
    if found == wanted or types.is_null(found):
        return True
    if _is_text(found) or _is_bytes(found):
        return (_is_text(found) and _is_text(wanted)) or (_is_bytes(found) and _is_bytes(wanted))
    if types.is_integer(found):
        return _integer_fits(found, wanted)
    if types.is_floating(found):
        return bool(types.is_floating(wanted) and found.bit_width <= wanted.bit_width)
    if _is_list(found) and _is_list(wanted):
        return lossless(found.value_type, wanted.value_type)
    if types.is_struct(found) and types.is_struct(wanted):
        return [field.name for field in found] == [field.name for field in wanted] and all(
            lossless(one.type, other.type) for one, other in zip(found, wanted, strict=True)
        )
    return False


def _integer_fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    signed = types.is_signed_integer(found)
    digits = found.bit_width - signed
    if types.is_floating(wanted):
        return bool(digits <= {16: 11, 32: 24, 64: 53}[wanted.bit_width])
    if not types.is_integer(wanted):
        return False
    wanted_signed = types.is_signed_integer(wanted)
    return bool(digits <= wanted.bit_width - wanted_signed and (wanted_signed or not signed))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a type has strings in it, at any depth."""
    if _is_text(kind):
        return True
    return any(holds_text(kind.field(number).type) for number in range(kind.num_fields))


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))
