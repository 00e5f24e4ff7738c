"""Files of a source, whatever their format: their versions, opening and reading them, readers kept open.

A file is read as it was when the source was opened, or not at all: each read of a block looks at size and version of
its files before and after, which costs two calls of ``stat`` (over a network, two requests for the head).
"""

import hashlib
import os
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import fsspec.core
import pyarrow as pa

from curation.errors import SourceError
from curation.sources.base import InputRecord

T = TypeVar("T")

_NAMED = 5
READ_ERRORS = (OSError, EOFError, ValueError, pa.ArrowException)


_VERSIONS = ("ETag", "etag", "Last-Modified")
"""What stores and servers call the mark of a file's version, the most exact first."""


@dataclass(frozen=True)
class File:
    """A file as it was when the source was opened.

    Args:
        path: local, or a URL.
        size: in bytes.
        stamp: changes when the file does: modification time and inode, ETag, or what else the store has.
        fingerprint: of its bytes, where it has been taken.
        partition: key and value of the folders ``key=value`` that it lies in.
    """

    path: str
    size: int
    stamp: str
    fingerprint: str = ""
    partition: tuple[tuple[str, str | None], ...] = ()


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


def stat(path: str) -> File:
    """Size and stamp of a file. One that a server gives no version of is downloaded, and stamped by its hash.

    Raises:
        SourceError: it is not there.
    """
    size, stamp = _version(path)
    if not stamp:
        content, stamp = _download(path)
        size = content.size()
        content.close()
    return File(path, size, stamp)


def _version(path: str) -> tuple[int, str]:
    """Size and stamp of a file as it is now; no stamp where a web server gives neither ETag nor Last-Modified."""
    fs, inner = filesystem(path)
    try:
        if is_local(fs):
            status = Path(inner).stat()
            return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"
        fs.invalidate_cache(inner)
        info = fs.info(inner)
        size = int(info.get("size") or 0)
        mark = next((f"{name.lower()}:{info[name]}" for name in _VERSIONS if info.get(name)), None)
        # What fsspec calls the key of a file's version is over HTTP a hash of its URL.
        return size, mark or ("" if "http" in fs.protocol else f"ukey:{fs.ukey(inner)}")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def _download(path: str) -> tuple[pa.NativeFile, str]:
    """A file's bytes, in a temporary file that goes when it is closed, and ``sha256:…`` of them."""
    fs, inner = filesystem(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = f"{folder}/copy"
        fs.get_file(inner, copy)
        with Path(copy).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return pa.OSFile(copy), f"sha256:{digest}"


def open_arrow(file: File, *, mapped: bool = True) -> pa.NativeFile:
    """Open for random access; a local file as a memory map, unless its bytes are to be copied anyway.

    Raises:
        SourceError: a file that a server gives no version of has changed.
    """
    fs, inner = filesystem(file.path)
    if is_local(fs):
        return pa.memory_map(inner) if mapped and file.size else pa.OSFile(inner)
    if not file.stamp.startswith("sha256:"):
        return pa.PythonFile(fs.open(inner, "rb"), mode="r")
    content, stamp = _download(file.path)
    if stamp != file.stamp:
        raise _changed(file, "its content is another")
    return content


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Read a file as it was when the source was opened: its version is looked at before and after.

    Raises:
        SourceError: it has changed, or a reader raised whatever; names the file.
    """
    before = _unchanged(file)
    try:
        yield
    except SourceError:
        raise
    except READ_ERRORS as error:
        _unchanged(file)
        raise SourceError(f"{file.path}: cannot be read: {error}") from error
    if _unchanged(file) != before:
        raise _changed(file, "it was touched just now")


def _unchanged(file: File) -> str:
    """The stamp of a file that still has the bytes that it had."""
    size, stamp = _version(file.path)
    if stamp == file.stamp and size == file.size:
        return stamp
    if not stamp and file.stamp.startswith("sha256:"):
        # Whoever opens it compares its content, and reads a copy of it.
        return stamp
    if size != file.size:
        raise _changed(file, f"it had {file.size} bytes when the run began, and now has {size}")
    # A file may be touched, or stand under another inode on another machine, and hold the same bytes.
    if file.fingerprint and is_local_path(file.path) and _sha256(file.path, stamp) == file.fingerprint:
        return stamp
    if not is_local_path(file.path):
        raise _changed(file, f"its version was {file.stamp}, and now is {stamp}")
    same = stamp.partition("-")[2] == file.stamp.partition("-")[2]
    raise _changed(file, "it was written to" if same else "another file stands in its place")


def _changed(file: File, what: str) -> SourceError:
    return SourceError(
        f"{file.path}: has changed since the run began: {what}. Rows of two versions are never mixed: run again when "
        "nothing writes to it any more"
    )


@lru_cache(maxsize=4096)
def _sha256(path: str, stamp: str) -> str:
    """``sha256:…`` of a local file's bytes while it has this stamp; of a file that changes meanwhile it is empty."""
    try:
        with Path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
    return f"sha256:{digest}" if _version(path)[1] == stamp else ""


def fingerprint(file: File) -> str:
    """``sha256:…`` of a local file's bytes; of a remote one its stamp, which names its version.

    Raises:
        SourceError: it has changed since the source was opened.
    """
    if not is_local_path(file.path):
        return file.stamp
    with reading(file), Path(filesystem(file.path)[1]).open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def each(work: Callable[[File], T], of: Sequence[File]) -> Iterator[T]:
    """Do something with each file, in a few threads: most of it is waiting for the disk or the network."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(work, of)


def with_fingerprints(files: Sequence[File]) -> tuple[File, ...]:
    """The same files, with the fingerprints of their bytes.

    Raises:
        SourceError: one of them has changed since the source was opened.
    """
    return tuple(replace(file, fingerprint=mark) for file, mark in zip(files, each(fingerprint, files), strict=True))


def records(files: Sequence[File], counts: Sequence[int]) -> list[InputRecord]:
    """An account of each file."""
    return [
        InputRecord(path=file.path, bytes=file.size, rows=count, fingerprint=file.fingerprint)
        for file, count in zip(files, counts, strict=True)
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


def named(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


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
