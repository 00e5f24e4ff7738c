"""Versions of files: what is read is what stood there when the source was opened, or an error, in every format."""

import gzip
import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import SourceError
from curation.recipe import FileSource
from curation.sources import open_source

ROWS = 60


def content(form: str, letter: str) -> bytes:
    """A file of rows that hold one letter; as many bytes whatever letter it is."""
    table = pa.table({"text": [letter * 40] * ROWS})
    if form.startswith("jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        return gzip.compress(lines, 0, mtime=0) if form.endswith("gz") else lines
    sink = pa.BufferOutputStream()
    if form == "parquet":
        pq.write_table(table, sink, row_group_size=20, use_dictionary=False, compression="none")
    else:
        make = pa.ipc.new_stream if form == "arrows" else pa.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return bytes(sink.getvalue())


FORMS = ["jsonl", "jsonl.gz", "parquet", "arrow", "arrows"]


def spec_of(form: str, path: str) -> FileSource:
    return FileSource.model_validate({"format": {"arrows": "arrow"}.get(form, form.partition(".")[0]), "path": path})


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def overwrite(path: Path, data: bytes) -> None:
    """In place: the same inode, and of the same size if the data are."""
    with path.open("r+b") as file:
        file.write(data)
    age(path)


def replace(path: Path, data: bytes) -> None:
    """By another file, of the same modification time."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def age(path: Path) -> None:
    """A modification time of its own: a kernel's clock may stand still between two writes of a test."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize("change", [overwrite, replace])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_change_of_the_same_size_is_noticed_by_a_reader_that_is_open(
    tmp_path: Path, form: str, change: Any, hashed: bool
) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content(form, "a"))
    source = open_source(spec_of(form, str(path)))
    if hashed:
        source.inputs()
    first, second, *_ = source.blocks(10)
    assert source.read(first)[0]["text"].to_pylist() == ["a" * 40] * 10
    change(path, content(form, "b"))
    said = "it was written to" if change is overwrite else "another file stands in its place"
    with pytest.raises(SourceError, match=rf"a\.{form}: has changed since the run began: {said}. Rows of two versions"):
        source.read(second)
    with pytest.raises(SourceError, match="has changed"):
        source.blocks(10) and source.inputs()
    assert open_source(spec_of(form, str(path))).read(second)[0]["text"].to_pylist() == ["b" * 40] * 10


def test_a_change_during_a_read_is_noticed(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content(form, "a"))
    source = open_source(spec_of(form, str(path)))
    (block,) = source.blocks(ROWS)
    if form.startswith("jsonl"):
        from curation.sources import jsonl as module

        name, real = "parse", module.LineStream.rows

        def rows(*args: Any) -> bytes:
            data = real(*args)
            overwrite(path, content(form, "b"))
            return data

        monkeypatch.setattr(module.LineStream, "rows", rows)
    else:
        from curation.sources import columnar

        name, plain = "converted", columnar.converted

        def converted(*args: Any) -> Any:
            overwrite(path, content(form, "b"))
            return plain(*args)

        monkeypatch.setattr(columnar, name, converted)
    with pytest.raises(SourceError, match="has changed since the run began: it was written to"):
        source.read(block)


@pytest.mark.parametrize("form", ["arrow", "arrows"])
def test_rows_of_a_memory_map_are_not_changed_after_they_were_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content(form, "a"))
    source = open_source(spec_of(form, str(path)))
    table, _ = source.read(source.blocks(ROWS)[0])
    overwrite(path, content(form, "b"))
    assert set(table["text"].to_pylist()) == {"a" * 40}


def test_a_file_of_equal_bytes_goes_on_where_they_were_hashed(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content(form, "a"))
    source = open_source(spec_of(form, str(path)))
    blocks = source.blocks(10)
    age(path)
    with pytest.raises(SourceError, match="has changed"):
        source.read(blocks[0])
    source = open_source(spec_of(form, str(path)))
    (record,) = source.inputs()
    assert record.fingerprint == f"sha256:{sha256(path.read_bytes()).hexdigest()}"
    age(path)
    assert source.read(blocks[0])[0]["text"].to_pylist() == ["a" * 40] * 10
    replace(path, content(form, "a"))
    assert source.read(blocks[1])[0]["text"].to_pylist() == ["a" * 40] * 10
    assert source.inputs() == [record]


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified", ""])
def test_files_on_a_web_server_are_known_by_their_version(web_server: Any, form: str, mark: str) -> None:
    server = web_server(mark)
    url = server.put(f"a.{form}", content(form, "a"))
    source = open_source(spec_of(form, url))
    (record,) = source.inputs()
    assert (
        record.fingerprint
        == {
            "ETag": 'etag:"1"',
            "Last-Modified": "last-modified:Sat, 21 Nov 2026 15:00:01 GMT",
            "": f"sha256:{sha256(content(form, 'a')).hexdigest()}",
        }[mark]
    )
    assert record.bytes == len(content(form, "a"))
    assert (record, ROWS) == (open_source(spec_of(form, url)).inputs()[0], record.rows)
    first, second, *_ = source.blocks(10)
    assert source.read(first)[0]["text"].to_pylist() == ["a" * 40] * 10
    server.put(f"a.{form}", content(form, "b"))
    if mark:
        with pytest.raises(SourceError, match=rf"a\.{form}: has changed since the run began: its version was"):
            source.read(second)
    else:
        # The copy that this process reads from is still that of the run; another process makes its own.
        assert source.read(second)[0]["text"].to_pylist() == ["a" * 40] * 10
        with pytest.raises(SourceError, match=rf"a\.{form}: has changed since the run began: its content is another"):
            open_readers_forgotten(source).read(second)
    assert open_source(spec_of(form, url)).inputs() != [record]


def open_readers_forgotten(source: Any) -> Any:
    from curation.sources import columnar, jsonl

    columnar._CURSORS._held.clear()
    jsonl._STREAMS._held.clear()
    return source
