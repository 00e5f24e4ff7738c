"""One suite for every file format: the same rows in, the same table out."""

import gzip
import itertools
import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import SourceError
from curation.recipe import FileSource
from curation.sources import files, open_source
from curation.sources.base import Block, Part

ROWS = 257
TABLE = pa.table(
    {
        "text": pa.array([None if row % 50 == 49 else f"row {row} über\n" * (row % 5) for row in range(ROWS)]),
        "n": pa.array(range(ROWS), pa.int64()),
        "x": pa.array([row / 8 for row in range(ROWS)], pa.float64()),
        "tags": pa.array([["a", f"t{row}"][: row % 3] for row in range(ROWS)], pa.list_(pa.string())),
        "where": pa.array([{"file": f"f{row}", "line": row} for row in range(ROWS)]),
    }
)


def parquet(table: pa.Table, path: str) -> None:
    with fsspec.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=60)


def arrow_file(table: pa.Table, path: str, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with fsspec.open(path, "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=33)


def arrow_stream(table: pa.Table, path: str, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with fsspec.open(path, "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=33)


def lines(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0).encode() + b"\n" for row in table.to_pylist())


def jsonl(table: pa.Table, path: str) -> None:
    with fsspec.open(path, "wb") as file:
        file.write(lines(table))


def jsonl_gz(table: pa.Table, path: str) -> None:
    with fsspec.open(path, "wb") as file:
        file.write(gzip.compress(lines(table), 1))


Writer = Callable[[pa.Table, str], None]
WRITERS: dict[str, tuple[str, str, Writer]] = {
    "parquet": ("parquet", "parquet", parquet),
    "arrow file": ("arrow", "arrow", arrow_file),
    "arrow file, lz4": ("arrow", "feather", lambda table, path: arrow_file(table, path, "lz4")),
    "arrow stream": ("arrow", "arrow", arrow_stream),
    "arrow stream, zstd": ("arrow", "arrows", lambda table, path: arrow_stream(table, path, "zstd")),
    "jsonl": ("jsonl", "jsonl", jsonl),
    "jsonl.gz": ("jsonl", "jsonl.gz", jsonl_gz),
}
CUTS = (0, 100, 100, 171, ROWS)


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> tuple[str, str, Writer]:
    return WRITERS[request.param]


@pytest.fixture
def folder(tmp_path: Path, kind: tuple[str, str, Writer]) -> Path:
    """TABLE in four files, one of them empty."""
    _, extension, write = kind
    for number, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        write(TABLE.slice(start, stop - start), str(tmp_path / f"part-{number}.{extension}"))
    return tmp_path


def whole(source: Any, rows: int, columns: list[str] | None = None) -> pa.Table:
    blocks = source.blocks(rows)
    tables = []
    for number, block in enumerate(blocks):
        table, bad = source.read(block, columns)
        assert bad == []
        assert (block.number, block.start) == (number, number * rows)
        assert len(table) == block.rows == min(rows, ROWS - block.start)
        tables.append(table)
    return pa.concat_tables(tables)


@pytest.mark.parametrize("rows", [1, 7, 33, 60, 100, 128, ROWS - 1, ROWS, 1000])
def test_blocks_of_any_size_concatenate_to_the_same_table(folder: Path, kind: Any, rows: int) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder)))
    assert source.schema == TABLE.schema
    assert whole(source, rows).equals(TABLE)


def test_blocks_read_in_any_order_and_again(folder: Path, kind: Any) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder)))
    blocks = source.blocks(20)
    order = np.random.default_rng(3).permutation(np.repeat(np.arange(len(blocks)), 2))
    for number in order:
        assert source.read(blocks[number])[0].equals(TABLE.slice(20 * number, 20))


def test_columns_are_mapped_and_read_alone(folder: Path, kind: Any) -> None:
    spec = FileSource(format=kind[0], path=str(folder), columns={"body": "text", "id": "n", "again": "text"})
    source = open_source(spec)
    wanted = TABLE.select(["text", "n", "text"]).rename_columns(["body", "id", "again"])
    assert source.schema == wanted.schema
    assert whole(source, 50).equals(wanted)
    assert whole(source, 50, ["id", "body"]).equals(wanted.select(["id", "body"]))
    with pytest.raises(ValueError, match="no column 'text'; it has body, id, again"):
        source.read(source.blocks(50)[0], ["text"])


def test_a_source_is_small_and_picklable(folder: Path, kind: Any) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder)))
    block = source.blocks(64)[2]
    pickled = pickle.dumps((source, block))
    assert len(pickled) < 4000
    assert pickle.loads(pickled)[0].read(block)[0].equals(TABLE.slice(128, 64))


def test_sources_read_the_same_in_another_process(tmp_path: Path) -> None:
    sources = []
    for number, (form, extension, write) in enumerate(WRITERS.values()):
        path = f"{tmp_path}/{number}.{extension}"
        write(TABLE, path)
        source = open_source(FileSource(format=form, path=path))
        sources.append((source, source.blocks(64)[2]))
    (tmp_path / "sources.pickle").write_bytes(pickle.dumps(sources))
    script = (
        "import pickle, sys; from pathlib import Path\n"
        "for source, block in pickle.loads(Path(sys.argv[1]).read_bytes()):\n"
        "    print(source.read(block, ['n'])[0]['n'].to_pylist())\n"
        "assert not {'ray', 'torch', 'datasets', 'pandas'} & set(sys.modules), 'heavy import'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "sources.pickle")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines() == [str(list(range(128, 192)))] * len(sources), run.stderr
    assert run.returncode == 0, run.stderr


def test_inputs_and_positions(folder: Path, kind: Any) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder)))
    inputs = source.inputs()
    assert [record.path for record in inputs] == sorted(str(path) for path in folder.iterdir())
    assert [record.rows for record in inputs] == [100, 0, 71, 86]
    assert [record.bytes for record in inputs] == [Path(record.path).stat().st_size for record in inputs]
    sums = subprocess.run(
        ["sha256sum", *(record.path for record in inputs)], capture_output=True, text=True, check=True
    )
    assert [record.fingerprint for record in inputs] == [
        f"sha256:{line.split()[0]}" for line in sums.stdout.splitlines()
    ]
    paths = [record.path for record in inputs]
    for index, place in ((0, (0, 0)), (99, (0, 99)), (100, (2, 0)), (170, (2, 70)), (171, (3, 0)), (256, (3, 85))):
        assert source.locate(index) == (paths[place[0]], place[1])
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match=f"position {index} is out of range: there are {ROWS} rows"):
            source.locate(index)


@pytest.fixture
def memory() -> Iterator[str]:
    root = f"memory://{uuid.uuid4().hex}"
    yield root
    fsspec.filesystem("memory").rm(root, recursive=True)


def test_remote_files(memory: str, kind: Any) -> None:
    name, extension, write = kind
    write(TABLE.slice(100), f"{memory}/deep/b.{extension}")
    write(TABLE.slice(0, 100), f"{memory}/a.{extension}")
    for path in (memory, [f"{memory}/a.{extension}", f"{memory}/deep/*.{extension}"]):
        source = open_source(FileSource(format=name, path=path))
        assert whole(source, 40).equals(TABLE)
        first = source.inputs()[0]
        assert first.path == f"{memory}/a.{extension}".replace("memory://", "memory:///")
        assert first.fingerprint.startswith("ukey:")
    with pytest.raises(SourceError, match=f"a.{extension}x: no such file or folder; there is a.{extension}"):
        open_source(FileSource(format=name, path=f"{memory}/a.{extension}x"))


def test_file_urls_globs_and_repeats(folder: Path, kind: Any) -> None:
    paths = [f"file://{folder}/part-*", f"{folder}/part-[01].*", str(folder / f"part-0.{kind[1]}")]
    source = open_source(FileSource(format=kind[0], path=paths))
    assert [record.path for record in source.inputs()] == sorted(str(path) for path in folder.iterdir())
    assert whole(source, 64).equals(TABLE)


def test_hidden_files_and_other_formats_are_passed_over(folder: Path, kind: Any) -> None:
    (folder / "_SUCCESS").touch()
    (folder / f".hidden.{kind[1]}").touch()
    (folder / "notes.txt").write_text("not rows")
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / f"half.{kind[1]}").touch()
    assert whole(open_source(FileSource(format=kind[0], path=str(folder))), 100).equals(TABLE)


def test_missing_paths_are_named(folder: Path, kind: Any) -> None:
    for path, message in (
        (folder / f"part-9.{kind[1]}", rf"part-9.{kind[1]}: no such file or folder; there is part-"),
        (folder / "*.nothing", r"\*.nothing: no file matches this pattern"),
        (folder / "nowhere" / "x", r"nowhere/x: no such file, nor is there a folder .*/nowhere"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(FileSource(format=kind[0], path=str(path)))
    (folder / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: this folder holds no file that ends in \."):
        open_source(FileSource(format=kind[0], path=str(folder / "empty")))
    with pytest.raises(SourceError, match="nonsense://x: cannot be opened"):
        open_source(FileSource(format=kind[0], path="nonsense://x"))


def test_a_missing_column_is_named_with_those_that_are_there(folder: Path, kind: Any) -> None:
    with pytest.raises(SourceError, match=r"part-0.*no column 'txt'.*it has text, n, x, tags, where.*mean text\?"):
        open_source(FileSource(format=kind[0], path=str(folder), columns={"text": "txt"}))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "jsonl"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    """Not for plain JSONL, where a cut line is a bad row."""
    form, extension, write = WRITERS[name]
    for number in range(3):
        write(TABLE, str(tmp_path / f"part-{number}.{extension}"))
    spec = FileSource(format=form, path=str(tmp_path))
    damaged = tmp_path / f"part-2.{extension}"
    whole_file = damaged.read_bytes()
    for content in (whole_file[: len(whole_file) // 2], np.random.default_rng(0).bytes(3000)):
        damaged.write_bytes(content)
        with pytest.raises(SourceError, match=r"part-2.*: cannot be read"):
            open_source(spec).blocks(100)
    (tmp_path / f"part-0.{extension}").write_bytes(b"" if form != "jsonl" else b"\x1f\x8b")
    with pytest.raises(SourceError, match=r"part-0.*: cannot be read"):
        open_source(spec)


def test_files_that_vanish_or_change_under_a_run(folder: Path, kind: Any) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder)))
    blocks = source.blocks(50)
    victim = folder / f"part-2.{kind[1]}"
    content = victim.read_bytes()
    victim.write_bytes(content + b"\n")
    with pytest.raises(SourceError, match=rf"part-2.*: it had {len(content)} bytes .* now has {len(content) + 1}"):
        source.read(blocks[2])
    victim.unlink()
    with pytest.raises(SourceError, match=r"part-2.*: cannot be read: .*No such file"):
        source.read(blocks[2])
    assert source.read(blocks[0])[0].equals(TABLE.slice(0, 50))


def test_a_file_with_fewer_rows_than_were_counted(folder: Path, kind: Any) -> None:
    source = open_source(FileSource(format=kind[0], path=str(folder / f"part-0.{kind[1]}")))
    with pytest.raises(SourceError, match=r"part-0.*: cannot be read: it (ends at row 100|has 1 rows fewer)"):
        source.read(Block(0, 0, 101, (Part(0, 0, 101),)))


def test_a_file_rewritten_in_place_is_not_served_from_an_old_reader(folder: Path, kind: Any) -> None:
    path = folder / f"part-0.{kind[1]}"
    spec = FileSource(format=kind[0], path=str(path))
    source = open_source(spec)
    source.read(source.blocks(10)[0])
    path.unlink()
    kind[2](TABLE.slice(100, 50), str(path))
    source = open_source(spec)
    assert source.read(source.blocks(10)[0])[0].equals(TABLE.slice(100, 10))


def test_a_block_has_at_least_one_row(folder: Path, kind: Any) -> None:
    with pytest.raises(ValueError, match="at least 1 row, not 0"):
        open_source(FileSource(format=kind[0], path=str(folder))).blocks(0)


def test_threads_share_no_reader(folder: Path, kind: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = open_source(FileSource(format=kind[0], path=str(folder)))
    blocks = source.blocks(10) * 4
    with ThreadPoolExecutor(8) as pool:
        for block, (table, _) in zip(blocks, pool.map(source.read, blocks), strict=True):
            assert table.equals(TABLE.slice(block.start, block.rows))


class Reader:
    def __init__(self) -> None:
        self.lent = False


def test_open_readers_are_bounded_and_failed_ones_dropped() -> None:
    made: list[Reader] = []

    def make() -> Reader:
        made.append(Reader())
        return made[-1]

    pool: files.OpenReaders[Reader] = files.OpenReaders(limit=2)
    for key in ("a", "b", "a", "c", "a"):
        with pool.borrow((key,), make):
            pass
    assert len(made) == 3
    with pool.borrow(("b",), make):
        assert len(made) == 4
    with pytest.raises(RuntimeError), pool.borrow(("b",), make):
        raise RuntimeError
    with pool.borrow(("b",), make), pool.borrow(("b",), make):
        assert len(made) == 6


def saved(folder: Path, table: pa.Table, **options: Any) -> None:
    datasets.Dataset(table).save_to_disk(folder, **options)


def test_a_saved_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    saved(tmp_path / "one", TABLE, num_shards=3)
    saved(tmp_path / "two", TABLE.slice(0, 40))
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    source = open_source(FileSource(format="dataset", path=str(tmp_path / "one")))
    assert source.schema.metadata is None
    assert whole(source, 50).equals(TABLE)
    state["_data_files"].reverse()
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    source = open_source(FileSource(format="dataset", path=str(tmp_path / "one")))
    expected = datasets.load_from_disk(str(tmp_path / "one")).data.table
    assert pa.concat_tables([source.read(block)[0] for block in source.blocks(50)]).equals(expected)
    both = open_source(FileSource(format="dataset", path=str(tmp_path / "*")))
    assert sum(record.rows for record in both.inputs()) == ROWS + 40


def test_datasets_that_cannot_be_read_as_they_are(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=datasets.Dataset(TABLE), test=datasets.Dataset(TABLE)).save_to_disk(tmp_path / "dict")
    with pytest.raises(SourceError, match="several splits; name one of them: train, test"):
        open_source(FileSource(format="dataset", path=str(tmp_path / "dict")))
    assert open_source(FileSource(format="dataset", path=str(tmp_path / "dict" / "test"))).schema == TABLE.schema
    saved(tmp_path / "d", TABLE)
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    for change, message in (
        ({"_indices_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
        ({"_data_files": []}, "lists no data file"),
        ({"_data_files": [{}]}, r"state.json: cannot be read: KeyError\('filename'\)"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: cannot be read: .*No such file"),
    ):
        (tmp_path / "d" / "state.json").write_text(json.dumps(state | change))
        with pytest.raises(SourceError, match=message):
            open_source(FileSource(format="dataset", path=str(tmp_path / "d")))
    (tmp_path / "d" / "state.json").unlink()
    with pytest.raises(SourceError, match="d: not a saved dataset: it holds no state.json"):
        open_source(FileSource(format="dataset", path=str(tmp_path / "d")))
    with pytest.raises(SourceError, match=r"dd: no such file or folder; there is d"):
        open_source(FileSource(format="dataset", path=str(tmp_path / "dd")))
