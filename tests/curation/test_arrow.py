"""Rows by position and in pieces, where all of them together would pass what one array can hold."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import arrow
from curation.arrow import contiguous, numbered, reordered, take_rows, widened

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("data", pa.binary()),
        ("words", pa.list_(pa.string())),
        ("deep", pa.struct([("lists", pa.list_(pa.list_(pa.int32())))])),
        ("pairs", pa.list_(pa.string(), 2)),
        ("map", pa.map_(pa.string(), pa.int64())),
        ("number", pa.int16()),
    ]
)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)

    def row(number: int) -> dict[str, Any]:
        words = [f"w{number}" * int(rng.integers(0, 9)) for _ in range(rng.integers(0, 4))]
        return {
            "text": None if number % 7 == 3 else "t" * int(rng.integers(0, 50)) + str(number),
            "data": bytes(rng.integers(0, 9, int(rng.integers(0, 30))).astype(np.uint8)),
            "words": None if number % 5 == 2 else words,
            "deep": {"lists": [[number], []]},
            "pairs": ["a", str(number)],
            "map": [(word, number) for word in words],
            "number": number,
        }

    return [row(number) for number in range(count)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    chunks=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    most=st.sampled_from([1, 300, 2000, 1 << 28]),
)
def test_rows_are_those_of_a_list_however_small_the_pieces(chunks: list[int], seed: int, most: int) -> None:
    values = rows(sum(chunks), seed)
    ends = np.cumsum([0, *chunks])
    table = pa.concat_tables([pa.Table.from_pylist(values[a:b], SCHEMA) for a, b in pairwise(ends)])
    as_lists = table.to_pylist()
    positions = np.random.default_rng(seed).integers(0, max(1, len(values)), 40 if values else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "PIECE_BYTES", most)
        for asked in (positions, np.unique(positions)):
            assert take_rows(asked, SCHEMA, numbered(table)).to_pylist() == [as_lists[row] for row in asked]
        parts = list(reordered(table, positions, 9))
        assert [row for part in parts for row in part.to_pylist()] == [as_lists[row] for row in positions]
        whole = list(contiguous(table))
        assert [row for part in whole for row in part.to_pylist()] == as_lists
        for part in [*parts, *whole]:
            assert all(column.num_chunks <= 1 for column in part.columns)
            assert part.nbytes <= most or len(part) <= 1


def test_offsets_are_wide_at_any_depth() -> None:
    assert widened(SCHEMA).types == [
        pa.large_string(),
        pa.large_binary(),
        pa.large_list(pa.large_string()),
        pa.struct([("lists", pa.large_list(pa.large_list(pa.int32())))]),
        pa.list_(pa.large_string(), 2),
        pa.map_(pa.large_string(), pa.int64()),
        pa.int16(),
    ]


@pytest.mark.slow
def test_more_than_two_gibibytes_of_text() -> None:
    table = pa.table({"text": pa.chunked_array([["x" * 140_000] * 5_667] * 3)})
    order = np.arange(len(table))[::-1].copy()
    assert table.nbytes > 2**31
    assert sum(part.num_rows for part in contiguous(table)) == 17_001
    assert take_rows(order, table.schema, numbered(table)).num_rows == 17_001
