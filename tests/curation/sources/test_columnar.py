"""Parquet and Arrow IPC: types across files, invalid UTF-8, and what reading a block touches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.arrow import holds_text
from curation.columns import lossless, plain
from curation.errors import SourceError
from curation.recipe import FileSource
from curation.sources import open_source
from curation.sources.bad_rows import converted
from curation.sources.base import BadRow


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=50)


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {"parquet": write_parquet, "arrow": write_arrow}


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(folder: Path, form: str, *tables: pa.Table, **options: Any) -> Any:
    for number, table in enumerate(tables):
        WRITERS[form](table, folder / f"{number}.{form}")
    return open_source(FileSource(format=form, path=str(folder), **options))


def read(source: Any, rows: int = 40, columns: list[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
    pairs = [source.read(block, columns) for block in source.blocks(rows)]
    return pa.concat_tables([table for table, _ in pairs]), [row for _, bad in pairs for row in bad]


def one(values: Any, kind: pa.DataType) -> pa.Table:
    return pa.table({"a": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        (pa.int64(), pa.int32(), [1, None]),
        (pa.int64(), pa.uint32(), [1, 2**32 - 1]),
        (pa.float64(), pa.float32(), [0.5, None]),
        (pa.float64(), pa.int32(), [1, 2**31 - 1]),
        (pa.string(), pa.large_string(), ["a", "é", None]),
        (pa.large_string(), pa.string(), ["a", "é", None]),
        (pa.string(), pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None]),
        (pa.binary(), pa.large_binary(), [b"\xff", None]),
        (pa.list_(pa.int64()), pa.list_(pa.int32()), [[1, 2], [], None]),
        (pa.string(), pa.null(), [None, None]),
    ],
)
def test_types_that_convert_without_loss_do(
    tmp_path: Path, form: str, first: pa.DataType, second: pa.DataType, values: list[Any]
) -> None:
    source = opened(tmp_path, form, one(values, first), one(values, second))
    table, bad = read(source, 3)
    assert table.schema == pa.schema([("a", first)])
    assert table["a"].to_pylist() == 2 * values
    assert bad == []


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (pa.int64(), pa.float64(), 1),
        (pa.float64(), pa.int64(), 1),
        (pa.uint64(), pa.int64(), 1),
        (pa.string(), pa.int64(), None),
        (pa.string(), pa.binary(), None),
        (pa.int64(), pa.bool_(), None),
        (pa.list_(pa.int64()), pa.list_(pa.string()), None),
    ],
)
def test_types_that_would_lose_are_errors(
    tmp_path: Path, form: str, first: pa.DataType, second: pa.DataType, value: Any
) -> None:
    with pytest.raises(SourceError, match=rf"1\.{form}: column 'a' is .*, but in .*0\.{form} it is .*: convert"):
        opened(tmp_path, form, one([value], first), one([value], second))


def test_the_columns_are_those_of_all_files(tmp_path: Path, form: str) -> None:
    source = opened(tmp_path, form, pa.table({"a": [1], "b": [2]}), pa.table({"a": [1], "c": [2.5]}))
    assert source.schema == pa.schema([("a", pa.int64()), ("b", pa.int64()), ("c", pa.float64())])
    assert read(source)[0].to_pylist() == [{"a": 1, "b": 2, "c": None}, {"a": 1, "b": None, "c": 2.5}]
    assert list(source.notes) == [
        f"column 'b' is null in 1 of 2 files, which lack it: {tmp_path}/1.{form}",
        f"column 'c' is null in 1 of 2 files, which lack it: {tmp_path}/0.{form}",
    ]
    assert read(source, 1, ["c"])[0].to_pydict() == {"c": [None, 2.5]}
    source = open_source(FileSource(format=form, path=str(tmp_path), columns={"a": "a"}))
    assert read(source)[0].to_pydict() == {"a": [1, 1]}
    assert list(source.notes) == []


def test_columns_that_share_a_name(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "a", "b"])
    with pytest.raises(SourceError, match=rf"0\.{form}: 2 columns are called 'a'"):
        opened(tmp_path, form, table)
    source = open_source(FileSource(format=form, path=str(tmp_path), columns={"b": "b"}))
    assert read(source)[0].to_pydict() == {"b": [3]}


def test_a_column_of_nulls_takes_its_type_from_a_later_file(tmp_path: Path, form: str) -> None:
    tables = [pa.table({"a": pa.nulls(2), "b": pa.nulls(2)}), pa.table({"a": [1.5], "b": pa.nulls(1)})]
    source = opened(tmp_path, form, *tables)
    assert source.schema == pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert read(source, 2)[0].to_pydict() == {"a": [None, None, 1.5], "b": [None, None, None]}


def test_everything_is_nullable_and_metadata_is_left_behind(tmp_path: Path, form: str) -> None:
    field = pa.field("a", pa.int64(), nullable=False, metadata={"key": "value"})
    source = opened(tmp_path, form, pa.table([pa.array([1])], schema=pa.schema([field], metadata={"other": "value"})))
    assert source.schema.equals(pa.schema([("a", pa.int64())]), check_metadata=True)
    assert read(source)[0].schema.equals(source.schema, check_metadata=True)


def test_dictionaries_are_decoded(tmp_path: Path, form: str) -> None:
    table = one(["a", None, "b"] * 40, pa.dictionary(pa.int8(), pa.string()))
    source = opened(tmp_path, form, table, table)
    assert source.schema == pa.schema([("a", pa.string())])
    assert read(source, 77)[0]["a"].to_pylist() == ["a", None, "b"] * 80


def unchecked(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """A string array that holds whatever bytes, as a careless writer makes it."""
    binary = pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind or pa.string(), len(values), binary.buffers())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_invalid_utf8_is_a_bad_row(tmp_path: Path, form: str, kind: pa.DataType) -> None:
    values: list[bytes | None] = [f"row {row}".encode() for row in range(130)]
    wrong = {0: b"\xff", 49: b"ok \xc3", 50: b"\xed\xa0\x80", 129: b"\xfe" * 5000}
    for row, value in wrong.items():
        values[row] = value
    values[51] = None
    tables = [
        pa.table({"n": range(10), "text": pa.array(["x"] * 10, kind)}),
        pa.table({"n": range(130), "text": unchecked(values, kind)}),
    ]
    source = opened(tmp_path, form, *tables)
    table, bad = read(source, 35)
    assert [(row.index, row.file, row.row) for row in bad] == [
        (10 + row, str(tmp_path / f"1.{form}"), row) for row in wrong
    ]
    assert {row.reason for row in bad} == {"column 'text': invalid UTF-8"}
    assert [row.raw for row in bad] == [value[:4096].decode("utf-8", "replace") for value in wrong.values()]
    expected = [
        {"n": None, "text": None} if row in wrong else {"n": row, "text": value and value.decode()}
        for row, value in enumerate(values)
    ]
    assert table.to_pylist() == [{"n": row, "text": "x"} for row in range(10)] + expected
    assert read(source, 35, ["n"])[1] == []


def test_invalid_utf8_inside_lists_and_structs(tmp_path: Path, form: str) -> None:
    texts = unchecked([b"a", b"\xff", b"c", b"\xff\xff", b"e", b"f"])
    table = pa.table(
        {
            "tags": pa.ListArray.from_arrays(pa.array([0, 1, 1, 3, 4, 5, 6], pa.int32()), texts),
            "where": pa.StructArray.from_arrays([texts.take(pa.array([0, 0, 0, 0, 0, 1]))], ["file"]),
        }
    )
    source = opened(tmp_path, form, table)
    for rows in (1, 4, 6):
        clean, bad = read(source, rows)
        assert [(row.index, row.reason) for row in bad] == [
            (2, "column 'tags': invalid UTF-8"),
            (3, "column 'tags': invalid UTF-8"),
            (5, "column 'where': invalid UTF-8"),
        ]
        null = {"tags": None, "where": None}
        fine = {"where": {"file": "a"}}
        assert clean.to_pylist() == [
            fine | {"tags": ["a"]},
            fine | {"tags": []},
            null,
            null,
            fine | {"tags": ["e"]},
            null,
        ]


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.sampled_from([b"fine", b"", None, "é".encode(), b"\xff", b"\xc3"]), min_size=1, max_size=70))
def test_invalid_rows_are_those_that_python_cannot_decode(values: list[bytes | None]) -> None:
    expected = []
    for row, value in enumerate(values):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            expected.append(row)
    clean, bad = converted([unchecked(values)], pa.schema([("text", pa.string())]))
    assert [row for row, _, _ in bad] == expected
    assert clean["text"].to_pylist() == [
        None if row in expected or value is None else value.decode() for row, value in enumerate(values)
    ]


def test_a_block_reads_only_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(tmp_path, "parquet", pa.table({"a": np.arange(1000), "b": np.arange(1000)}))
    blocks = source.blocks(75)
    asked: list[tuple[list[int], list[str]]] = []
    plain_batches = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *args: Any, row_groups: list[int], columns: list[str], **options: Any) -> Any:
        asked.append((row_groups, columns))
        return plain_batches(self, *args, row_groups=row_groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    assert source.read(blocks[4], ["b"])[0]["b"].to_pylist() == list(range(300, 375))
    assert asked == [([6], ["b"]), ([7], ["b"])]
    assert source.read(blocks[5], ["b"])[0]["b"].to_pylist() == list(range(375, 450))
    assert asked[2:] == [([8], ["b"])], "the second half of row group 7 was decoded before"
    assert source.read(blocks[12], ["b"])[0]["b"].to_pylist() == list(range(900, 975))
    assert asked[3:] == [([18], ["b"]), ([19], ["b"])]
    source.read(blocks[0], ["a"])
    assert asked[5:] == [([0], ["a"]), ([1], ["a"])]


def test_damage_in_the_middle_of_a_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = pa.table({"a": [generator.bytes(40).hex() for _ in range(500)]})
    path = tmp_path / "0.parquet"
    pq.write_table(table, path, row_group_size=100, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    source = open_source(FileSource(format="parquet", path=str(path)))
    with pytest.raises(SourceError, match=r"0.parquet: cannot be read"):
        read(source)


def test_a_table_of_many_chunks_is_not_combined(tmp_path: Path) -> None:
    source = opened(tmp_path, "arrow", pa.table({"a": np.arange(1000)}))
    (block,) = source.blocks(1000)
    assert source.read(block)[0]["a"].num_chunks == 20


def test_saved_hugging_face_types_keep_their_storage(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "set")
    source = open_source(FileSource(format="dataset", path=str(tmp_path / "set")))
    assert read(source)[0].to_pydict() == {"text": ["a", "b"], "label": [1, 0]}


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


@pytest.mark.parametrize("found", INTEGERS, ids=str)
@pytest.mark.parametrize("wanted", [*INTEGERS, pa.float32(), pa.float64()], ids=str)
def test_integers_convert_where_their_ends_do(found: pa.DataType, wanted: pa.DataType) -> None:
    limits = np.iinfo(found.to_pandas_dtype())
    # The integer just inside the upper end is the first that a float of too few digits cannot hold.
    exact = True
    for value in (limits.min, limits.max, limits.max - 2):
        try:
            exact = exact and pa.array([value], found).cast(wanted)[0].as_py() == value
        except pa.ArrowInvalid:
            exact = False
    assert lossless(found, wanted) == exact


def test_plain_types_and_text() -> None:
    assert plain(pa.dictionary(pa.int8(), pa.large_string())) == pa.large_string()
    assert plain(pa.string_view()) == pa.string()
    assert plain(pa.binary_view()) == pa.binary()
    assert plain(pa.run_end_encoded(pa.int32(), pa.string())) == pa.string()
    assert holds_text(pa.struct([("a", pa.list_(pa.large_string()))]))
    assert holds_text(pa.map_(pa.string(), pa.int64()))
    assert not holds_text(pa.struct([("a", pa.list_(pa.binary()))]))
    same = pa.struct([("a", pa.int32()), ("b", pa.string())])
    assert lossless(same, pa.struct([("a", pa.int64()), ("b", pa.string())]))
    assert lossless(same, pa.struct([("c", pa.int8()), ("b", pa.string()), ("a", pa.int64())]))
    assert not lossless(same, pa.struct([("a", pa.int64())]))
