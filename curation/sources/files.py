"""Files of a source, whatever their format: names to files, opening, fingerprints, blocks, open readers."""

import difflib
import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import fsspec.core
import pyarrow as pa

from curation.errors import SourceError
from curation.sources.base import InputRecord

T = TypeVar("T")

RAW_BYTES = 4096
READ_ERRORS = (OSError, EOFError, ValueError, pa.ArrowException)


@dataclass(frozen=True)
class File:
    """A file as it was when the source was opened. ``path`` is local, or a URL; ``stamp`` changes when it does."""

    path: str
    size: int
    stamp: str


def expand(paths: str | Sequence[str], extensions: tuple[str, ...]) -> tuple[File, ...]:
    """Find the files that paths, folders, globs and fsspec URLs mean, each once, sorted by name.

    Raises:
        SourceError: one of them matches nothing; names it, and what stands nearby.
    """
    found: dict[str, File] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        names = list(_match(path, extensions))
        if not names:
            raise SourceError(f"{path}: {_nothing(path, extensions)}")
        found.update((name, stat(name)) for name in names if name not in found)
    return tuple(found[name] for name in sorted(found))


def _match(path: str, extensions: tuple[str, ...]) -> Iterator[str]:
    fs, inner = filesystem(path)
    try:
        # Over HTTP, asking whether something is a folder downloads it: ask for files first.
        if fs.isfile(inner):
            yield _unstrip(fs, inner)
        elif fs.isdir(inner):
            root = inner.rstrip("/") + "/"
            for name in fs.find(inner):
                if name.endswith(extensions) and not is_hidden(name.removeprefix(root)):
                    yield _unstrip(fs, name)
        elif any(mark in inner for mark in "*?["):
            yield from (_unstrip(fs, name) for name in fs.glob(inner) if not fs.isdir(name))
    except Exception as error:  # remote file systems raise what their client libraries raise
        raise SourceError(f"{path}: cannot be listed: {error}") from error


def is_hidden(path: str) -> bool:
    """Whether a file below a source's folder is passed over: a part of its path starts with a dot or underscore."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _nothing(path: str, extensions: tuple[str, ...]) -> str:
    fs, inner = filesystem(path)
    if fs.isdir(inner):
        return f"this folder holds no file that ends in {', '.join(extensions)}"
    if any(mark in inner for mark in "*?["):
        return "no file matches this pattern"
    folder, _, name = inner.rstrip("/").rpartition("/")
    try:
        near = [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(folder or "/", detail=False)]
    except (OSError, NotImplementedError):
        return f"no such file, nor is there a folder {folder}"
    close = difflib.get_close_matches(name, near, n=3)
    return "no such file or folder" + (f"; there is {', '.join(close)}" if close else "")


def _unstrip(fs: Any, name: str) -> str:
    return name if is_local(fs) else str(fs.unstrip_protocol(name))


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path inside it.

    Raises:
        SourceError: the protocol is unknown, or needs a package that is not installed.
    """
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{path}: cannot be opened: {error}") from error
    return fs, inner


def is_local(fs: Any) -> bool:
    """Whether the file system is this machine's own disk."""
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_local_path(path: str) -> bool:
    """Whether a path or URL is on this machine's own disk."""
    return is_local(filesystem(path)[0])


def folders(paths: Sequence[str]) -> list[str]:
    """The folders that paths, globs and URLs mean, each once, sorted by name.

    Raises:
        SourceError: one of them matches no folder.
    """
    found: set[str] = set()
    for path in paths:
        fs, inner = filesystem(path)
        names = [inner] if fs.isdir(inner) else []
        if not names and any(mark in inner for mark in "*?["):
            names = [name for name in fs.glob(inner) if fs.isdir(name)]
        if not names:
            raise SourceError(f"{path}: {_nothing(path, ())}")
        found.update(_unstrip(fs, name) for name in names)
    return sorted(found)


def stat(path: str) -> File:
    """Size and stamp of a file.

    Raises:
        SourceError: it is not there.
    """
    fs, inner = filesystem(path)
    try:
        if is_local(fs):
            status = Path(inner).stat()
            return File(path, status.st_size, f"{status.st_mtime_ns}-{status.st_ino}")
        return File(path, int(fs.size(inner) or 0), str(fs.ukey(inner)))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def open_arrow(file: File, *, mapped: bool = True) -> pa.NativeFile:
    """Open for random access; a local file as a memory map, unless its bytes are to be copied anyway.

    Raises:
        SourceError: the file is gone, or has another size than when the source was opened.
    """
    now = stat(file.path)
    if now.size != file.size:
        raise SourceError(f"{file.path}: had {file.size} bytes when the run began, and now has {now.size}: run again")
    fs, inner = filesystem(file.path)
    if is_local(fs):
        return pa.memory_map(inner) if mapped and file.size else pa.OSFile(inner)
    return pa.PythonFile(fs.open(inner, "rb"), mode="r")


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Turn whatever a reader raises into a SourceError that names the file."""
    try:
        yield
    except SourceError:
        raise
    except READ_ERRORS as error:
        raise SourceError(f"{file.path}: cannot be read: {error}") from error


def fingerprint(file: File) -> str:
    """``sha256:…`` of a local file's bytes; ``ukey:…``, the file system's own mark of a version, of a remote one."""
    fs, inner = filesystem(file.path)
    if not is_local(fs):
        return f"ukey:{fs.ukey(inner)}"
    with reading(file), Path(inner).open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def each(work: Callable[[File], T], of: Sequence[File]) -> list[T]:
    """Do something with each file, in a few threads: most of it is waiting for the disk or the network."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, of))


def records(files: Sequence[File], counts: Sequence[int]) -> list[InputRecord]:
    """An account of each file."""
    return [
        InputRecord(path=file.path, bytes=file.size, rows=count, fingerprint=mark)
        for file, count, mark in zip(files, counts, each(fingerprint, files), strict=True)
    ]


def locate(counts: Sequence[int], index: int) -> tuple[int, int]:
    """Number of the file and row in it of a position; O(log files) after a running sum.

    Raises:
        IndexError: the position is out of range.
    """
    ends = list(accumulate(counts))
    if not 0 <= index < (ends[-1] if ends else 0):
        raise IndexError(f"position {index} is out of range: there are {ends[-1] if ends else 0} rows")
    file = bisect_right(ends, index)
    return file, index - (ends[file - 1] if file else 0)


def raw_text(raw: bytes) -> str:
    """The start of a bad row, fit to be shown."""
    return raw[:RAW_BYTES].decode("utf-8", "replace")


def subset(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The fields of these columns, in the order asked for; all of them for None.

    Raises:
        ValueError: one of them is not there, or none is asked for.
    """
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"the source has no column {name!r}; {closest(name, schema.names)}")
    if not columns:
        raise ValueError("ask for at least one column")
    return pa.schema([schema.field(name) for name in columns])


def closest(name: str, there: Iterable[str]) -> str:
    """The sentence that tells which columns a file has."""
    names = list(there)
    near = difflib.get_close_matches(name, names, n=1)
    return f"it has {', '.join(names) or 'none'}" + (f" (did you mean {near[0]}?)" if near else "")


class OpenReaders(Generic[T]):
    """Readers that a process keeps open, so that blocks read in rising order go on where the last one ended.

    A reader is out of the pool while it is used, so threads never share one; after a fork a process opens its own.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._held: OrderedDict[tuple[object, ...], T] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, key: tuple[object, ...], make: Callable[[], T]) -> Iterator[T]:
        """Lend the reader of ``key``, made anew where there is none; one that fails is not kept."""
        key = (os.getpid(), *key)
        with self._lock:
            reader = self._held.pop(key, None)
        if reader is None:
            reader = make()
        yield reader
        with self._lock:
            self._held[key] = reader
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
