"""Columns of many files: no key, file, folder or value is left out without a word."""

import gzip
import json
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import SourceError
from curation.recipe import FileSource
from curation.sources import json_kinds, lines, open_source
from curation.sources.base import BadRow


def read(source: Any, rows: int = 1000) -> tuple[list[dict[str, Any]], list[BadRow]]:
    pairs = [source.read(block) for block in source.blocks(rows)]
    return [row for table, _ in pairs for row in table.to_pylist()], [row for _, bad in pairs for row in bad]


def jsonl(path: Path, rows: list[Any]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def opened(path: Path, form: str = "jsonl", **options: Any) -> Any:
    return open_source(FileSource(format=form, path=str(path), **options))  # type: ignore[arg-type]


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


INTEGERS = st.one_of(
    st.integers(-9, 9),
    st.sampled_from([2**53 + 1, -(2**53) - 1, 2**62, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, 123456789012345680000]),
)
FLOATS = st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from([1e300, 0.1, 2.0**70]))
TEXT = st.sampled_from(["", "a", "é\n", "2024-01-01", "1", "null"])
SCALARS = [st.integers(-9, 9), INTEGERS, FLOATS, INTEGERS | FLOATS, TEXT, st.booleans(), st.none()]


def values(draw: Callable[[st.SearchStrategy[Any]], Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What may stand under one key: values of one kind, or null."""
    kind = draw(st.sampled_from(["scalar", "list", "object"] if depth < 2 else ["scalar"]))
    if kind == "list":
        return st.none() | st.lists(values(draw, depth + 1), max_size=3)
    if kind == "object":
        fields = {key: values(draw, depth + 1) for key in sorted(draw(st.sets(st.sampled_from("pqr"), min_size=1)))}
        return st.none() | st.fixed_dictionaries({}, optional=fields)
    return st.none() | draw(st.sampled_from(SCALARS))


def same(held: Any, value: Any) -> bool:
    """Whether what was read is what a plain loop over the lines gives; keys that it lacks are null."""
    if isinstance(value, dict):
        return isinstance(held, dict) and all(same(held[key], value.get(key)) for key in {*held, *value})
    if isinstance(value, list):
        return isinstance(held, list) and len(held) == len(value) and all(map(same, held, value))
    if isinstance(held, bool) or isinstance(value, bool):
        return held is value
    return bool(held == value) or (isinstance(held, float) and not rounds(value) and held == float(value))


def rounds(value: Any) -> bool:
    """Whether an integer in it is none of the floats, nor the shortest number that reads back as one."""
    if isinstance(value, dict | list):
        return any(map(rounds, value.values() if isinstance(value, dict) else value))
    return type(value) is int and float(value) != value and Decimal(repr(float(value))) != value


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), block=st.integers(1, 9), chunk=st.sampled_from([1, 40, 1 << 20]))
def test_every_value_of_json_lines_is_read(data: st.DataObject, block: int, chunk: int) -> None:
    keys = {key: values(data.draw) for key in sorted(data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)))}
    row = st.fixed_dictionaries({}, optional=keys)
    sets = data.draw(st.lists(st.lists(row, max_size=6), min_size=1, max_size=4))
    expected = [row for rows in sets for row in rows]
    whole, lines._CHUNK = lines._CHUNK, chunk
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number, rows in enumerate(sets):
                jsonl(Path(folder) / f"{number}.jsonl{'.gz' * (number % 2)}", rows)
            if not any(expected):
                with pytest.raises(SourceError, match="nothing to tell its columns from"):
                    opened(Path(folder))
                return
            held, bad = read(opened(Path(folder)), block)
    finally:
        lines._CHUNK = whole
    assert len(held) == len(expected)
    wrong = {row.index: row.reason for row in bad}
    for index, row in enumerate(expected):
        if index in wrong:
            assert rounds(row)
            assert "an integer would be rounded" in wrong[index]
            assert set(held[index].values()) == {None}
        else:
            assert same({key: value for key, value in held[index].items() if key in keys}, row), (held[index], row)


KINDS = [
    (pa.int8(), pa.int32(), pa.uint16(), pa.int64(), pa.null()),
    (pa.float32(), pa.float64(), pa.int32(), pa.uint8(), pa.null()),
    (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.null()),
    (pa.list_(pa.int8()), pa.list_(pa.int64()), pa.null()),
    (pa.struct([("p", pa.int8())]), pa.struct([("q", pa.string()), ("p", pa.int16())]), pa.null()),
    (pa.bool_(), pa.null()),
]
EXAMPLES: list[list[Any]] = [
    [0, 7, None],
    [1, 2, None],
    ["a", "é", "", None],
    [[1, 2], [], [None], None],
    [{"p": 1}, {"p": None}, None],
    [True, False, None],
]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data(), block=st.integers(1, 7), form=st.sampled_from(["parquet", "arrow"]))
def test_every_value_of_typed_files_is_read(data: st.DataObject, block: int, form: str) -> None:
    columns = {
        name: data.draw(st.integers(0, len(KINDS) - 1)) for name in sorted(data.draw(st.sets(st.sampled_from("abcde"))))
    }
    expected: list[dict[str, Any]] = []
    tables = []
    for _ in range(data.draw(st.integers(1, 4))):
        rows = data.draw(st.integers(0, 5))
        arrays = {"always": pa.array(range(len(expected), len(expected) + rows), pa.int64())}
        for name, family in columns.items():
            if data.draw(st.booleans()):
                kind = data.draw(st.sampled_from(KINDS[family]))
                made = data.draw(st.lists(st.sampled_from(EXAMPLES[family]), min_size=rows, max_size=rows))
                arrays[name] = pa.nulls(rows) if pa.types.is_null(kind) else pa.array(made, kind)
        tables.append(pa.table(arrays))
        expected += tables[-1].to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        for number, table in enumerate(tables):
            path = Path(folder) / f"{number}.{form}"
            pq.write_table(table, path, row_group_size=2) if form == "parquet" else write_arrow(path, table)
        source = opened(Path(folder), form)
        held, bad = read(source, block)
    assert bad == []
    assert set(source.schema.names) == {name for table in tables for name in table.schema.names}
    assert len(held) == len(expected)
    for row, wanted in zip(held, expected, strict=True):
        assert same(row, wanted), (row, wanted)


def test_keys_that_come_late(tmp_path: Path) -> None:
    filler = "x" * 400
    rows: list[dict[str, Any]] = [{"text": filler, "n": 1, "meta": {"a": 1}} for _ in range(6000)]
    rows[5000] |= {"extra": "late", "n": 2.5}
    rows[5001] |= {"meta": {"b": [1]}}
    jsonl(tmp_path / "a.jsonl", rows)
    jsonl(tmp_path / "b.jsonl", [{"text": "t", "url": "u"}])
    source = opened(tmp_path)
    assert source.schema == pa.schema(
        {
            "text": pa.string(),
            "n": pa.float64(),
            "meta": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))]),
            "extra": pa.string(),
            "url": pa.string(),
        }
    )
    held, bad = read(source)
    assert bad == []
    assert all(same({key: held[at][key] for key in row}, row) for at, row in enumerate(rows))
    assert held[6000] == {"text": "t", "n": None, "meta": None, "extra": None, "url": "u"}


def test_an_object_of_too_many_keys_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_kinds, "MOST_KEYS", 3)
    jsonl(tmp_path / "a.jsonl", [{"text": "t", "meta": {f"k{row}": row}} for row in range(5)])
    jsonl(tmp_path / "b.jsonl", [{"text": "t", "meta": {"k9": 1}}])
    source = opened(tmp_path)
    assert source.schema.field("meta").type.num_fields == 3
    (note,) = source.notes
    assert note.startswith("3 values are left out: under 'meta' stand more than")
    assert note.endswith("and those from 'k3' on are no columns")


@pytest.mark.parametrize(
    "paths",
    [
        ["k=1", "k=2"],
        ["k=01", "k=2"],
        ["k=1", "k=x"],
        ["k=1", "k=__HIVE_DEFAULT_PARTITION__"],
        ["k=3000000000", "k=2"],
        ["k=a%20b", "k=c"],
        ["k=1.5"],
        ["k=1", "j=2"],
        ["k=1/j=x", "k=2/j=y"],
        ["k=", "k=1"],
        ["k=+5"],
        ["k=1", "plain"],
    ],
)
def test_folders_are_columns_as_pyarrow_has_them(tmp_path: Path, paths: list[str]) -> None:
    for number, path in enumerate(paths):
        (tmp_path / path).mkdir(parents=True)
        pq.write_table(pa.table({"a": [number]}), tmp_path / path / "part-0.parquet")
        jsonl(tmp_path / path / "part-0.jsonl", [{"a": number}])
    wanted = pads.dataset(tmp_path, partitioning="hive", exclude_invalid_files=True)
    kinds = dict(zip(wanted.schema.names, wanted.schema.types, strict=True))
    rows = sorted(wanted.to_table().to_pylist(), key=lambda row: row["a"])
    for form in ("parquet", "jsonl"):
        for where in (tmp_path, tmp_path / "**" / f"*.{form}"):
            source = opened(where, form)
            assert dict(zip(source.schema.names, source.schema.types, strict=True)) == kinds
            held, bad = read(source, 1)
            assert bad == []
            assert sorted(held, key=lambda row: row["a"]) == rows
        alone = opened(tmp_path / paths[0], form)
        assert alone.schema.names == ["a"], "a folder that is named itself counts for nothing"
    key = next(iter(kinds.keys() - {"a"}))
    renamed = opened(tmp_path, "parquet", columns={"a": "a", "origin": key}, schema={"origin": "string"})
    assert renamed.schema.field("origin").type == pa.string()
    assert renamed.read(renamed.blocks(1)[0], ["origin"])[0].num_rows == 1


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_folder_and_a_column_of_one_name(tmp_path: Path, form: str) -> None:
    (tmp_path / "a=1").mkdir()
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "a=1" / "x.parquet")
    jsonl(tmp_path / "a=1" / "x.jsonl", [{"a": 1, "b": 1}])
    with pytest.raises(
        SourceError, match=rf"a=1/x.{form}: it has a column 'a', and its folder a=1 says so too: rename"
    ):
        opened(tmp_path, form)
    assert read(opened(tmp_path / "a=1", form))[0] == [{"a": 1, "b": 1}]
    (tmp_path / "other" / "k=x").mkdir(parents=True)
    (tmp_path / "a=1" / f"x.{form}").rename(tmp_path / "other" / "k=x" / f"x.{form}")
    source = opened(tmp_path / "other", form, schema={"k": "int64"})
    with pytest.raises(SourceError, match="its folder says k=x, which is no int64"):
        read(source)


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    for name in ("a.jsonl.zst", "b.json.gz", "_SUCCESS", ".hidden", "c.parquet"):
        (tmp_path / name).touch()
    (note,) = opened(tmp_path).notes
    assert note == (
        f"{tmp_path}: 3 files do not end in .jsonl, .ndjson, .jsonl.gz, .ndjson.gz and are not read: "
        f"{tmp_path}/a.jsonl.zst, {tmp_path}/b.json.gz, {tmp_path}/c.parquet"
    )
    both = FileSource(format="jsonl", path=[str(tmp_path), str(tmp_path / "b.json.gz")])
    jsonl(tmp_path / "b.json.gz", [{"a": 2}])
    source = open_source(both)
    assert [row["a"] for row in read(source)[0]] == [1, 2]
    assert "2 files do not end in" in source.notes[0]


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_a_declared_type(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = [{"text": f"t{row}", "n": row, "x": row / 2} for row in range(9)]
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        jsonl(path, rows)
    else:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, path) if form == "parquet" else write_arrow(path, table)
    source = opened(tmp_path, form, schema={"n": "int8", "x": "float32"})
    assert source.schema == pa.schema({"text": pa.string(), "n": pa.int8(), "x": pa.float32()})
    assert read(source, 4) == (rows, [])
    source = opened(tmp_path, form, schema={"x": "int64"})
    held, bad = read(source, 4)
    fits = [row for row in range(9) if form != "jsonl" and row % 2 == 0]
    assert [row["x"] for row in held] == [row // 2 if row in fits else None for row in range(9)]
    assert [row["text"] for row in held] == [f"t{row}" if row in fits else None for row in range(9)]
    assert [row.index for row in bad] == [row for row in range(9) if row not in fits]
    assert bad[0].reason.startswith("column 'x': ")
    with pytest.raises(SourceError, match=r"`schema` of the source names 'y', it has text, n, x"):
        opened(tmp_path, form, schema={"y": "int64"})
    with pytest.raises(SourceError, match=r"'n' (is int64, and )?cannot be (read as list<item: int64>|halffloat)"):
        opened(tmp_path, form, schema={"n": "halffloat" if form == "jsonl" else "list<int64>"})
    with pytest.raises(ValueError, match="there is no type 'integer'"):
        opened(tmp_path, form, schema={"n": "integer"})
    with pytest.raises(ValueError, match="`schema` names 'n', which `columns` leaves out"):
        opened(tmp_path, form, columns={"text": "text"}, schema={"n": "int64"})


def test_with_all_types_declared_nothing_is_read_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "a.jsonl", [{"a": 1, "b": {"c": 1}}, {"a": 2.5}, {"d": 3}])
    monkeypatch.setattr(json_kinds.Kind, "learn", None)
    source = opened(tmp_path, columns={"a": "a", "b": "b"}, schema={"a": "float64", "b": "struct<c: int64>"})
    assert read(source)[0] == [{"a": 1.0, "b": {"c": 1}}, {"a": 2.5, "b": None}, {"a": None, "b": None}]
    with pytest.raises(SourceError, match="'x' and 'y' are both 'a', so of one type"):
        opened(tmp_path, columns={"x": "a", "y": "a"}, schema={"x": "int64", "y": "float64"})
