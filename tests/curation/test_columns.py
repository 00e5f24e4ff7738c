"""Columns: types by name, types that hold several, and conversion of what ``datasets`` lacks."""

import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.columns import convert, lossless, plain, type_of, wider

UUIDS = [uuid.UUID(int=number).bytes for number in range(3)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("int64", pa.int64()),
        (" float64 ", pa.float64()),
        ("list<string>", pa.list_(pa.string())),
        ("large_list<item: int8>", pa.large_list(pa.int8())),
        ("timestamp[us, tz=Europe/Berlin]", pa.timestamp("us", "Europe/Berlin")),
        ("decimal128(10, 2)", pa.decimal128(10, 2)),
        (
            "struct<a: int64, b: list<struct<c: decimal128(3, 1), d: bool>>>",
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.decimal128(3, 1)), ("d", pa.bool_())])))]),
        ),
    ],
)
def test_types_by_name(name: str, kind: pa.DataType) -> None:
    assert type_of(name) == kind
    assert type_of(str(kind)) == kind


@pytest.mark.parametrize("name", ["", "integer", "list<integer>", "list<int64", "struct<a>", "decimal128(10)"])
def test_no_such_type(name: str) -> None:
    with pytest.raises(ValueError, match="there is no type '.*'; types are such as string, int64"):
        type_of(name)


def sliced(inner: pa.Array) -> pa.Array:
    """[null, [], [inner 1, inner 2]], as a slice of a longer one."""
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 1, 1, 3], pa.int32()), inner, mask=pa.array([False, True] + [False] * 2)
    )
    return lists[1:]


@pytest.mark.parametrize(
    ("array", "kind", "values"),
    [
        (pa.array(UUIDS, pa.uuid()), pa.binary(16), UUIDS),
        (sliced(pa.array(UUIDS, pa.uuid())), pa.list_(pa.binary(16)), [None, [], UUIDS[1:]]),
        (
            pa.StructArray.from_arrays([pa.array(UUIDS, pa.uuid())], ["x"], mask=pa.array([False, True, False])),
            pa.struct([("x", pa.binary(16))]),
            [{"x": UUIDS[0]}, None, {"x": UUIDS[2]}],
        ),
        (
            pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())])),
            [[{"key": "a", "value": 1}], None, []],
        ),
        (pa.array([[1, 2], None, [3]], pa.list_view(pa.int8())), pa.list_(pa.int8()), [[1, 2], None, [3]]),
        (pa.array([[1], None], pa.large_list_view(pa.int8())), pa.large_list(pa.int8()), [[1], None]),
        (pc.run_end_encode(pa.array(["a", "a", None])), pa.string(), ["a", "a", None]),
        (sliced(pa.array(["a", "b", "b"]).dictionary_encode()), pa.list_(pa.string()), [None, [], ["b", "b"]]),
        (pa.array([["a"], None], pa.list_(pa.string_view())), pa.list_(pa.string()), [["a"], None]),
        (pa.array([1, None], pa.decimal32(3, 1)), pa.decimal128(3, 1), [1, None]),
        (pa.array([1, 0], pa.bool8()), pa.int8(), [1, 0]),
    ],
)
def test_what_datasets_lacks_is_read_as_what_it_has(array: pa.Array, kind: pa.DataType, values: list[Any]) -> None:
    assert plain(array.type) == kind
    made = convert(array, plain(array.type))
    made.validate(full=True)
    assert made.type == kind
    assert made.to_pylist() == values


NUMBERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
NUMBERS += [pa.float32(), pa.float64()]
TYPES = st.recursive(
    st.sampled_from([*NUMBERS, pa.null(), pa.string(), pa.large_string(), pa.binary(), pa.bool_()]),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1).map(lambda fields: pa.struct(list(fields.items()))),
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(one=TYPES, other=TYPES)
def test_the_wider_type_holds_both(one: pa.DataType, other: pa.DataType) -> None:
    met = wider(one, other)
    if met is None:
        assert not lossless(one, other)
        assert not lossless(other, one)
        assert wider(other, one) is None
    else:
        assert lossless(one, met)
        assert lossless(other, met)
        for kind in (one, other):
            assert convert(pa.nulls(2, kind), met).type == met


def test_numbers_meet_in_the_narrowest_type() -> None:
    for one, other, met in (
        (pa.int8(), pa.uint8(), pa.int16()),
        (pa.int32(), pa.uint32(), pa.int64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int64(), pa.uint64(), None),
        (pa.int64(), pa.float64(), None),
    ):
        assert wider(one, other) == wider(other, one) == met
