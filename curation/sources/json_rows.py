"""Rows of JSON lines: parsed by known types, and why one is bad.

Lines are parsed by pyarrow in one go. Only where that fails are they halved until the bad ones stand alone:
O(bad · log rows) parses.
"""

import json
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pyarrow import types

from curation.sources.base import raw_text
from curation.sources.lines import rows_in, split

_PARSED_AT_ONCE = 1 << 30


def parse(data: bytes, rows: int, schema: pa.Schema) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    """Parse rows; bad ones are null and stand in the list, as (row, reason, raw)."""
    table = read_json(data, rows, schema)
    if table is not None:
        bad = _rounded(table, data)
        return _nulled(table, [row for row, _, _ in bad]), bad
    lines = split(data)
    good: list[pa.Table] = []
    bad = []
    spans = [(0, len(lines))]
    while spans:
        start, stop = spans.pop()
        piece = b"\n".join(lines[start:stop])
        table = read_json(piece, stop - start, schema)
        if table is not None:
            good.append(table)
            bad += [(start + row, reason, raw) for row, reason, raw in _rounded(table, piece)]
        elif stop - start == 1:
            good.append(pa.table([pa.nulls(1, field.type) for field in schema], schema=schema))
            bad.append((start, _reason(lines[start], schema), raw_text(lines[start])))
        else:
            middle = (start + stop) // 2
            spans += [(middle, stop), (start, middle)]
    return _nulled(pa.concat_tables(good), [row for row, _, _ in bad]), bad


def _nulled(table: pa.Table, bad: list[int]) -> pa.Table:
    if not bad:
        return table
    mask = np.zeros(len(table), bool)
    mask[bad] = True
    return table.take(pa.array(np.arange(len(table)), mask=mask))


def read_json(data: bytes, rows: int, schema: pa.Schema, unexpected: str = "ignore") -> pa.Table | None:
    """Parse lines in one go, each of them a row; None where any is bad, or has a key that is an ``"error"``."""
    if rows > 1 and len(data) > _PARSED_AT_ONCE:
        return None
    if not _is_utf8(data) or not _one_object_a_line(data):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
        )
    except (pa.ArrowException, ValueError):
        return None
    return table.select(schema.names) if table.num_rows == rows else None


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _one_object_a_line(data: bytes) -> bool:
    """Whether every line is ``{...}``: with as many rows as lines, none of them can then span two."""
    values = np.frombuffer(data, np.uint8)
    starts, ends = rows_in(data)
    last = values[ends - 1]
    last = np.where((last == ord("\r")) & (ends > 1), values[ends - 2], last)
    return bool((values[starts] == ord("{")).all() and (last == ord("}")).all())


def _reason(line: bytes, schema: pa.Schema) -> str:
    """Why a line is bad."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError) as error:
        return f"line is not JSON: {error}"
    if not isinstance(row, dict):
        return f"line is not a JSON object: {_short(row)}"
    for field in schema:
        if field.name in row:
            one = json.dumps({field.name: row[field.name]}).encode()
            if read_json(one, 1, pa.schema([field])) is None:
                return f"column {field.name!r}: expected {field.type}, got {_short(row[field.name])}"
    return "line is not JSON that can be read: a key stands twice in it, or a text holds half a surrogate pair"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _rounded(table: pa.Table, data: bytes) -> list[tuple[int, str, str]]:
    """Rows in which an integer has more digits than its column of floats holds."""
    bad: dict[int, tuple[int, str, str]] = {}
    for name, field in zip(table.schema.names, table.schema, strict=True):
        long = _is_long(table.column(name).combine_chunks())
        suspects = np.flatnonzero(long).tolist()
        lines = split(data) if suspects else []
        for row in suspects:
            value = json.loads(lines[row]).get(name)
            if row not in bad and not _is_exact(value, field.type):
                reason = f"column {name!r}: as {field.type} an integer would be rounded in {_short(value)}"
                bad[row] = (row, reason, raw_text(lines[row]))
    return [bad[row] for row in sorted(bad)]


def _is_long(array: pa.Array) -> npt.NDArray[np.bool_]:
    """bool[rows], where a float is so large that not all integers of its size are floats."""
    kind = array.type
    long = np.zeros(len(array), bool)
    if types.is_floating(kind):
        if array.null_count < len(array):
            long = np.abs(_values(array, f"f{kind.bit_width // 8}")) >= {32: 1 << 24, 64: 1 << 53}[kind.bit_width]
    elif types.is_list(kind) or types.is_large_list(kind):
        inner = _is_long(array.flatten())
        if inner.any():
            long[_values(pc.list_parent_indices(array), "i8")[inner]] = True
    elif types.is_struct(kind):
        for child in array.flatten():
            long |= _is_long(child)
    return long


def _values(array: pa.Array, dtype: str) -> npt.NDArray[Any]:
    """The numbers of an array, whatever where it is null; ``to_numpy`` would import pandas."""
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _is_exact(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, list):
        return all(_is_exact(item, kind.value_type) for item in value)
    if isinstance(value, dict):
        return all(_is_exact(value[field.name], field.type) for field in kind if field.name in value)
    if type(value) is not int or not types.is_floating(kind):
        return True
    held = pa.scalar(float(value), pa.float64()).cast(kind).as_py()
    # Other writers print a float of many digits as the shortest integer that reads back as it.
    return int(held) == value or int(Decimal(repr(held))) == value
