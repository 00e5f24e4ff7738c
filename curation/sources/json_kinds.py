"""Kinds of JSON values: which keys rows have, and what stands under them, over all rows.

Rows are parsed by pyarrow in the types that are known so far. Only where that fails are lines looked at one by one, so
learning costs little more than a parse: some 150 MB a second and core, against 50 where every line is looked at.
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from curation.sources.json_rows import read_json
from curation.sources.lines import split

MOST_KEYS = 1000
"""Keys of one object that become columns: one with more is a map, and most of its columns would be nearly empty."""

_KINDS = {bool: "bool", int: "int", float: "float", str: "text", list: "list", dict: "object"}
_SIMPLE = {"bool": pa.bool_(), "float": pa.float64(), "text": pa.string()}


class Kind:
    """What stands under a key. Integers widen to floats; where other kinds meet the first stands."""

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.low = self.high = 0
        self.fields: dict[str, Kind] = {}
        self.items: Kind | None = None
        self.left_out = 0
        self.first_left_out = ""

    def learn(self, data: bytes, rows: int) -> None:
        """Take some rows into account; lines that are no JSON objects teach nothing."""
        table = read_json(data, rows, pa.schema(list(self.type)), unexpected="error")
        if table is not None:
            for name in table.schema.names:
                for chunk in table.column(name).chunks:
                    self.fields[name]._note_signs(chunk)
            return
        for line in split(data):
            try:
                self.add(json.loads(line.decode(), parse_constant=_refuse))
            except (ValueError, RecursionError):
                continue

    def add(self, value: Any) -> None:
        """Take one more value into account.

        Raises:
            ValueError: a key is not Unicode.
        """
        kind = _KINDS.get(type(value), "")
        if not kind or not self._takes(kind):
            return
        if kind == "int":
            self.low, self.high = min(self.low, value), max(self.high, value)
        elif kind == "list":
            for item in value:
                self._item.add(item)
        elif kind == "object":
            for key, item in value.items():
                field = self._field(key)
                if field is not None:
                    field.add(item)

    def merge(self, other: "Kind") -> None:
        """Take all that another has learned into account."""
        if not other.kind or not self._takes(other.kind):
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.items is not None:
            self._item.merge(other.items)
        for key, item in other.fields.items():
            field = self._field(key)
            if field is not None:
                field.merge(item)
        self.left_out += other.left_out
        self.first_left_out = self.first_left_out or other.first_left_out

    @property
    def type(self) -> pa.DataType:
        """The type that holds all values so far; null where there was none."""
        if self.kind == "int":
            if self.low >= -(1 << 63) and self.high < 1 << 63:
                return pa.int64()
            return pa.uint64() if self.low >= 0 and self.high < 1 << 64 else pa.float64()
        if self.kind == "list":
            return pa.list_(self._item.type)
        if self.kind == "object":
            return pa.struct([(key, field.type) for key, field in self.fields.items()])
        return _SIMPLE.get(self.kind, pa.null())

    def crowded(self, path: str) -> Iterator[tuple[str, "Kind"]]:
        """Objects of too many keys, at any depth, with their place below ``path``."""
        if self.left_out:
            yield path, self
        if self.items is not None:
            yield from self.items.crowded(f"{path}[]")
        for key, field in self.fields.items():
            yield from field.crowded(f"{path}.{key}" if path else key)

    def _takes(self, kind: str) -> bool:
        if not self.kind or (self.kind, kind) == ("int", "float"):
            self.kind = kind
        return kind == self.kind or (self.kind, kind) == ("float", "int")

    @property
    def _item(self) -> "Kind":
        self.items = self.items or Kind()
        return self.items

    def _field(self, key: str) -> "Kind | None":
        field = self.fields.get(key)
        if field is None:
            key.encode()
            if len(self.fields) == MOST_KEYS:
                self.left_out += 1
                self.first_left_out = self.first_left_out or key
                return None
            field = self.fields[key] = Kind()
        return field

    def _note_signs(self, array: pa.Array) -> None:
        """Whether there are negative integers decides what those above int64 become."""
        if self.kind == "int" and self.low == 0:
            self.low = min(0, pc.min(array).as_py() or 0)
        elif self.kind == "list":
            self._item._note_signs(array.flatten())
        elif self.kind == "object":
            for field, child in zip(self.fields.values(), array.flatten(), strict=True):
                field._note_signs(child)


def settled(kind: pa.DataType) -> pa.DataType:
    """A type to read with: where there was never a value, strings."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind])
    return kind


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
