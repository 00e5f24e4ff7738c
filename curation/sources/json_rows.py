"""Rows of JSON lines: parsed by known types, why one is bad, and types inferred from a sample.

Lines are parsed by pyarrow in one go. Only where that fails are they halved until the bad ones stand alone:
O(bad · log rows) parses.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from pyarrow import types

from curation.sources import files
from curation.sources.lines import rows_in, split

_PARSED_AT_ONCE = 1 << 30


def parse(data: bytes, rows: int, schema: pa.Schema) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    """Parse rows; bad ones are null and stand in the list, as (row, reason, raw)."""
    table = _read_json(data, rows, schema)
    if table is not None:
        return table, []
    lines = split(data)
    good: list[pa.Table] = []
    bad: list[tuple[int, str, str]] = []
    spans = [(0, len(lines))]
    while spans:
        start, stop = spans.pop()
        table = _read_json(b"\n".join(lines[start:stop]), stop - start, schema)
        if table is not None:
            good.append(table)
        elif stop - start == 1:
            bad.append((start, _reason(lines[start], schema), files.raw_text(lines[start])))
        else:
            middle = (start + stop) // 2
            spans += [(middle, stop), (start, middle)]
    mask = np.zeros(len(lines), bool)
    mask[[row for row, _, _ in bad]] = True
    order = np.cumsum(~mask) - 1
    return pa.concat_tables([*good, schema.empty_table()]).take(pa.array(order, mask=mask)), bad


def _read_json(data: bytes, rows: int, schema: pa.Schema | None) -> pa.Table | None:
    """Parse lines in one go; None where any of them is bad."""
    if rows > 1 and len(data) > _PARSED_AT_ONCE:
        return None
    if not _is_utf8(data) or not _one_object_a_line(data):
        return None
    known = {} if schema is None else {"explicit_schema": schema, "unexpected_field_behavior": "ignore"}
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(**known),
        )
    except (pa.ArrowException, ValueError):
        return None
    if table.num_rows != rows:
        return None
    return table if schema is None else table.select(schema.names)


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
            if _read_json(one, 1, pa.schema([field])) is None:
                return f"column {field.name!r}: expected {field.type}, got {_short(row[field.name])}"
    return "line is not JSON that can be read: a key stands twice in it, or a text holds half a surrogate pair"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def infer(lines: list[bytes]) -> pa.Schema | None:
    """The schema of rows, in file order of the keys; None where no line is a JSON object."""
    kinds = _kinds(lines)
    if kinds is None:
        return None
    for name in [name for name, kind in kinds.items() if types.is_float64(kind)]:
        if _needs_unsigned(name, lines):
            kinds[name] = pa.uint64()
    return pa.schema([(name, _settled(kind)) for name, kind in kinds.items()])


def _needs_unsigned(name: str, lines: list[bytes]) -> bool:
    """Whether a column holds integers above int64, such as hashes; pyarrow would round them to floats."""
    values = set()
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get(name), int | float):
            values.add(row[name])
    return all(type(value) is int and 0 <= value < 1 << 64 for value in values) and max(values, default=0) >= 1 << 63


def _kinds(lines: list[bytes]) -> dict[str, pa.DataType] | None:
    table = _read_json(b"\n".join(lines), len(lines), None)
    if table is not None:
        return dict(zip(table.schema.names, table.schema.types, strict=True))
    if len(lines) == 1:
        return None
    middle = len(lines) // 2
    first, second = _kinds(lines[:middle]), _kinds(lines[middle:])
    if first is None or second is None:
        return second if first is None else first
    return first | {name: _widened(first.get(name, pa.null()), kind) for name, kind in second.items()}


def _widened(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type for both; the first where there is none."""
    if types.is_null(one) or (types.is_integer(one) and types.is_floating(other)):
        return other
    if types.is_timestamp(one) and types.is_string(other):
        return other
    if types.is_list(one) and types.is_list(other):
        return pa.list_(_widened(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        fields |= {field.name: _widened(fields.get(field.name, pa.null()), field.type) for field in other}
        return pa.struct(list(fields.items()))
    return one


def _settled(kind: pa.DataType) -> pa.DataType:
    """Nulls become strings, and so do timestamps: pyarrow takes texts that look like dates for them."""
    if types.is_null(kind) or types.is_timestamp(kind):
        return pa.string()
    if types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, _settled(field.type)) for field in kind])
    return kind
