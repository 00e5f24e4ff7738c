"""Columns of tables: the type that one is read as, the type that holds several, types by name, and conversion."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_DECIMAL = re.compile(r"decimal128\((\d+), *(-?\d+)\)")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), *tz=(.+)\]")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column is read as: one that ``datasets`` has too, with an equal value for each value.

    Dictionaries and run-ends are decoded, views are ordinary arrays, maps lists of (key, value), short decimals long
    ones, and extension types but JSON what they are stored as; at any depth.
    """
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, pa.JsonType) else plain(kind.storage_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_map(kind):
        return pa.list_(pa.struct([("key", plain(kind.key_type)), ("value", plain(kind.item_type))]))
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain(kind.value_type))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([(field.name, plain(field.type)) for field in kind])
    return kind


def is_string(kind: pa.DataType) -> bool:
    """Whether a type is one of strings, as it is stored."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of lists of any length."""
    return bool(types.is_list(kind) or types.is_large_list(kind))


def lossless(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of type ``kind`` has an equal one in the type ``wanted``, where a lacking field is null."""
    kind = plain(kind)
    if kind == wanted or types.is_null(kind):
        return True
    if is_string(kind) or _is_bytes(kind):
        return (is_string(kind) and is_string(wanted)) or (_is_bytes(kind) and _is_bytes(wanted))
    if types.is_integer(kind):
        return _integer_fits(kind, wanted)
    if types.is_floating(kind):
        return bool(types.is_floating(wanted) and kind.bit_width <= wanted.bit_width)
    if is_list(kind) and is_list(wanted):
        return lossless(kind.value_type, wanted.value_type)
    if types.is_struct(kind) and types.is_struct(wanted):
        there = {field.name: field.type for field in wanted}
        return all(field.name in there and lossless(field.type, there[field.name]) for field in kind)
    return False


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds every value of both, the first where it does; None where no type does."""
    one, other = plain(one), plain(other)
    if types.is_null(one):
        return other
    if lossless(other, one):
        return one
    if lossless(one, other):
        return other
    if is_list(one) and is_list(other):
        inner = wider(one.value_type, other.value_type)
        large = types.is_large_list(one) or types.is_large_list(other)
        return None if inner is None else (pa.large_list if large else pa.list_)(inner)
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            met = wider(fields.get(field.name, pa.null()), field.type)
            if met is None:
                return None
            fields[field.name] = met
        return pa.struct(list(fields.items()))
    candidates = (pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64())
    return next((kind for kind in candidates if lossless(one, kind) and lossless(other, kind)), None)


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in another type; equal values where :func:`lossless`, else Arrow's safe cast.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
        pyarrow.ArrowNotImplementedError: there is no way between the types.
    """
    found = array.type
    if found == kind:
        return array
    if isinstance(array, pa.ExtensionArray):
        return convert(array.storage, kind)
    if types.is_run_end_encoded(found):
        return convert(pc.run_end_decode(array), kind)
    if types.is_struct(found) and types.is_struct(kind):
        there = {field.name: child for field, child in zip(found, array.flatten(), strict=True)}
        children = [
            convert(there[field.name], field.type) if field.name in there else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    # Arrow's own cast of list views makes lists that lack their last offset.
    if (is_list(found) or types.is_list_view(found) or types.is_large_list_view(found)) and is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        made, offset = (pa.LargeListArray, np.int64) if types.is_large_list(kind) else (pa.ListArray, np.int32)
        ends = np.cumsum([0, *lengths], dtype=offset)
        return made.from_arrays(pa.array(ends), convert(array.flatten(), kind.value_type), mask=array.is_null())
    return array.cast(kind)


def type_of(name: str) -> pa.DataType:
    """A type by its name, such as ``int64``, ``list<string>`` or ``struct<a: int64, b: list<float64>>``.

    Raises:
        ValueError: there is none of that name.
    """
    text = name.strip()
    lists: dict[str, Callable[[pa.DataType], pa.DataType]] = {"list<": pa.list_, "large_list<": pa.large_list}
    if text.endswith(">"):
        for opening, made in lists.items():
            if text.startswith(opening):
                return made(type_of(text.removeprefix(opening)[:-1].strip().removeprefix("item: ")))
        if text.startswith("struct<"):
            pairs = [part.partition(":") for part in _parts(text.removeprefix("struct<")[:-1])]
            return pa.struct([(field.strip(), type_of(kind)) for field, _, kind in pairs])
    if match := _DECIMAL.fullmatch(text):
        return pa.decimal128(int(match[1]), int(match[2]))
    if match := _ZONED.fullmatch(text):
        return pa.timestamp(match[1], match[2])
    try:
        return pa.type_for_alias(text)
    except ValueError:
        raise ValueError(
            f"there is no type {name!r}; types are such as string, int64, float64, bool, binary, timestamp[us], "
            "decimal128(10, 2), list<string>, struct<a: int64, b: string>"
        ) from None


def subset(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The fields of these columns, in the order asked for; all of them for None.

    Raises:
        ValueError: one of them is not there, or none is asked for.
    """
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"the source has no column {name!r}; {closest(name, schema.names)}")
    if not columns:
        raise ValueError("ask for at least one column")
    return pa.schema([schema.field(name) for name in columns])


def closest(name: str, there: Iterable[str]) -> str:
    """The sentence that tells which columns a file has."""
    names = list(there)
    near = difflib.get_close_matches(name, names, n=1)
    return f"it has {', '.join(names) or 'none'}" + (f" (did you mean {near[0]}?)" if near else "")


def _parts(text: str) -> list[str]:
    """A text cut at its commas, but not at those inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<([") - (character in ">)]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _integer_fits(kind: pa.DataType, wanted: pa.DataType) -> bool:
    signed = types.is_signed_integer(kind)
    digits = kind.bit_width - signed
    if types.is_floating(wanted):
        return bool(digits <= {16: 11, 32: 24, 64: 53}[wanted.bit_width])
    if not types.is_integer(wanted):
        return False
    wanted_signed = types.is_signed_integer(wanted)
    return bool(digits <= wanted.bit_width - wanted_signed and (wanted_signed or not signed))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))
