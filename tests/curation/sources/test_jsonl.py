"""JSON lines: which lines are rows, which rows are bad, and why."""

import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import SourceError
from curation.recipe import FileSource
from curation.sources import lines as line_reading
from curation.sources import open_source
from curation.sources.base import BadRow

SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64())])


def read(source: Any, rows: int = 1000, columns: list[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
    pairs = [source.read(block, columns) for block in source.blocks(rows)]
    return pa.concat_tables([table for table, _ in pairs]), [row for _, bad in pairs for row in bad]


def opened(path: Path, content: bytes, **options: Any) -> Any:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return open_source(FileSource(format="jsonl", path=str(path), **options))


BAD = [
    (b"nonsense", "line is not JSON: Expecting value"),
    (b'{"text": "cut', "line is not JSON: Unterminated string"),
    (b'{"text": "a"} {"text": "b"}', "line is not JSON: Extra data"),
    (b"[1, 2]", r"line is not a JSON object: \[1, 2\]"),
    (b'"text"', 'line is not a JSON object: "text"'),
    (b"\x00\x00", "line is not JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"other": "\xc3\x28"}', "invalid UTF-8"),
    (b'{"text": 3}', "column 'text': expected string, got 3"),
    (b'{"text": ["a"]}', r"column 'text': expected string, got \[\"a\"\]"),
    (b'{"text": "a", "n": "1"}', "column 'n': expected int64, got \"1\""),
    (b'{"n": true}', "column 'n': expected int64, got true"),
    (b'{"n": NaN}', "column 'n': expected int64, got NaN"),
    (
        b'{"text": "' + b"x" * 200 + b'", "n": {"a": "' + b"y" * 200 + b'"}}',
        r"column 'n': expected int64, got .*\.\.\.",
    ),
    (b'{"text": "a", "text": "b"}', ".*a key stands twice"),
    (b'{"text": "\\ud800"}', r"column 'text': expected string, got \"\\ud800\""),
    (b"[" * 100_000, "line is not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_line_keeps_its_position_and_says_why(tmp_path: Path, line: bytes, reason: str) -> None:
    good = [json.dumps({"text": f"row {row}", "n": row}).encode() for row in range(20)]
    (tmp_path / "b.jsonl").write_bytes(b"\n".join([*good[10:13], b"", line, *good[14:]]))
    opened(tmp_path / "a.jsonl", b"\n".join(good[:10]))
    table, (bad,) = read(open_source(FileSource(format="jsonl", path=str(tmp_path))), 7)
    expected = [{"text": f"row {row}", "n": row} if row != 13 else {"text": None, "n": None} for row in range(20)]
    assert table.to_pylist() == expected
    assert (bad.index, bad.file, bad.row) == (13, str(tmp_path / "b.jsonl"), 3)
    assert re.match(reason, bad.reason), bad.reason
    assert bad.raw == line[:4096].decode("utf-8", "replace")


LINES = st.sampled_from(
    [
        *[json.dumps({"text": text, "n": n}).encode() for text, n in (("a", 1), ("\n\u2028 é", -5), ("", 2**40))],
        b'{"text":"no n"}',
        b"{}",
        b'  {"n": 7, "more": [1, {"a": null}]} \r',
        b'{"text":null}\r',
        b"",
        b"\r",
        b" \t ",
        *[line for line, _ in BAD[:12]],
    ]
)


def reference(content: bytes) -> list[dict[str, Any] | None]:
    rows: list[dict[str, Any] | None] = []
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            values = {"text": row.get("text"), "n": row.get("n")}
            fits = isinstance(values["text"], str | None) and type(values["n"]) in (int, type(None))
            rows.append(values if fits else None)
        except (ValueError, AttributeError):
            rows.append(None)
    return rows


@settings(deadline=None, max_examples=150)
@given(
    lines=st.lists(LINES, max_size=30),
    rows=st.integers(1, 12),
    end=st.sampled_from([b"", b"\n", b"\n \n"]),
    bom=st.booleans(),
    zipped=st.booleans(),
    chunk=st.sampled_from([1, 3, 16, 200, 1 << 20]),
)
def test_rows_are_those_of_a_plain_loop(
    lines: list[bytes], rows: int, end: bytes, bom: bool, zipped: bool, chunk: int
) -> None:
    content = b"\n".join([b'{"text": "first", "n": 0}', *lines]) + end
    expected = reference(content)
    kept, line_reading._CHUNK = line_reading._CHUNK, chunk
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("a.jsonl.gz" if zipped else "a.jsonl")
            source = opened(
                path,
                b"\xef\xbb\xbf" * bom + content,
                columns={"text": "text", "n": "n"},
                schema={"text": "string", "n": "int64"},
            )
            table, bad = read(source, rows)
    finally:
        line_reading._CHUNK = kept
    assert table.to_pylist() == [row or {"text": None, "n": None} for row in expected]
    assert [row.index for row in bad] == [index for index, row in enumerate(expected) if row is None]
    assert sum(source.counts) == len(expected)


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        ([{"a": 1}, {"a": 2.5}], {"a": pa.float64()}),
        ([{"a": None}, {"a": None}], {"a": pa.string()}),
        ([{"a": None}, {"b": True}, {"a": 3}], {"a": pa.int64(), "b": pa.bool_()}),
        ([{"a": "2024-01-01 00:00:00"}, {"a": "2024-01-01"}], {"a": pa.string()}),
        ([{"a": []}, {"a": [None]}], {"a": pa.list_(pa.string())}),
        ([{"a": [1]}, {"a": [2.5]}], {"a": pa.list_(pa.float64())}),
        ([{"a": {"b": 1}}, {"a": {"c": ["2024-01-01 00:00:00"]}}], None),
        ([{"a": 2**64 - 1}, {"a": 1}, {"a": None}], {"a": pa.uint64()}),
        ([{"a": 2**64}], {"a": pa.float64()}),
        ([{"a": 2**63}, {"a": -1}], {"a": pa.float64()}),
        ([{"a": 2**63}, {"a": 0.5}], {"a": pa.float64()}),
    ],
)
@pytest.mark.parametrize("noise", [[], [b"nonsense"]])
def test_types_are_inferred(
    tmp_path: Path, lines: list[dict[str, Any]], kinds: dict[str, pa.DataType] | None, noise: list[bytes]
) -> None:
    content = b"\n".join([*(json.dumps(line).encode() for line in lines), *noise])
    source = opened(tmp_path / "a.jsonl", content)
    expected = kinds or {"a": pa.struct([("b", pa.int64()), ("c", pa.list_(pa.string()))])}
    assert source.schema == pa.schema(list(expected.items()))
    table, bad = read(source)
    assert len(bad) == len(noise)
    if pa.types.is_uint64(source.schema.field("a").type):
        assert table["a"].to_pylist()[: len(lines)] == [line["a"] for line in lines]


def test_where_two_types_meet_the_first_stands(tmp_path: Path) -> None:
    source = opened(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": "x"}\n{"a": 2}\n')
    table, (bad,) = read(source)
    assert table["a"].to_pylist() == [1, None, 2]
    assert bad.reason == "column 'a': expected int64, got \"x\""


def test_later_files_that_differ_hold_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(b'{"a": "text"}\n{"a": 5}\n')
    opened(tmp_path / "a.jsonl", b'{"a": 1}\n')
    table, (bad,) = read(open_source(FileSource(format="jsonl", path=str(tmp_path))))
    assert table["a"].to_pylist() == [1, None, 5]
    assert (bad.index, bad.file, bad.row) == (1, str(tmp_path / "b.jsonl"), 0)


def test_badness_does_not_depend_on_the_columns_that_are_read(tmp_path: Path) -> None:
    source = opened(tmp_path / "a.jsonl", b'{"a": "x", "n": 1}\n{"a": "y", "n": "one"}\n')
    assert read(source, 10, ["a"])[1] == read(source, 10)[1] != []


def test_files_without_rows(tmp_path: Path) -> None:
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        with pytest.raises(SourceError, match=r"a.jsonl: holds no rows"):
            opened(tmp_path / "a.jsonl", content)
    with pytest.raises(SourceError, match=r"a.jsonl: none of its 2 lines is a JSON object"):
        opened(tmp_path / "a.jsonl", b"id,text\n1,a\n")
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 1}')
    table, _ = read(open_source(FileSource(format="jsonl", path=str(tmp_path))))
    assert table["a"].to_pylist() == [1]


def test_lines_longer_than_a_chunk(tmp_path: Path) -> None:
    texts = ["x" * size for size in (3_000_000, 5, 1 << 20, (1 << 20) - 12, 2_500_000)]
    content = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    for name in ("a.jsonl", "a.jsonl.gz"):
        for rows in (1, 2, 10):
            table, bad = read(opened(tmp_path / name, content), rows)
            assert table["text"].to_pylist() == texts
            assert bad == []


def test_gzip_that_is_cut_or_is_none(tmp_path: Path) -> None:
    content = b"".join(b'{"a": "%d"}\n' % (row * 7919 % 100_003) for row in range(300_000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content, 1)[:-1000])
    for columns in (None, {"a": "a"}):
        spec = FileSource(format="jsonl", path=str(path), columns=columns, schema=columns and {"a": "string"})
        with pytest.raises(SourceError, match=r"a.jsonl.gz: cannot be read: Compressed file ended"):
            open_source(spec).blocks(100)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.jsonl.gz: cannot be read: Not a gzipped file"):
        open_source(FileSource(format="jsonl", path=str(path)))


def test_rising_blocks_of_a_gzip_file_decompress_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewinds = 0
    plain_rewind = gzip.GzipFile.rewind

    def rewind(self: gzip.GzipFile) -> None:
        nonlocal rewinds
        rewinds += 1
        plain_rewind(self)

    monkeypatch.setattr(gzip.GzipFile, "rewind", rewind)
    sought: list[int] = []
    plain_seek = gzip.GzipFile.seek
    monkeypatch.setattr(
        gzip.GzipFile, "seek", lambda self, offset, *rest: sought.append(offset) or plain_seek(self, offset, *rest)
    )
    content = b"".join(b'{"a": "%d"}\n' % row for row in range(100_000))
    source = opened(tmp_path / "a.jsonl.gz", content)
    blocks = source.blocks(999)
    for block in blocks:
        source.read(block)
    assert (rewinds, sought) == (0, [])
    source.read(blocks[90])
    assert len(sought) == 1
