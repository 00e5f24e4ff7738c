"""Listings of a source's paths: which files they mean, which they pass over, and what folders say of their rows."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from curation.errors import SourceError
from curation.sources.files import File, filesystem, is_local, named, stat

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MARKS = "*?["


@dataclass(frozen=True)
class Listing:
    """Files of a source, and what a user should know of those that were passed over."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


def expand(paths: str | Sequence[str], extensions: tuple[str, ...]) -> Listing:
    """Find the files that paths, folders, globs and fsspec URLs mean, each once, sorted by name.

    In a folder those that end in one of the extensions are meant. Others are named in a note, but for hidden ones
    (:func:`is_hidden`). Folders called ``key=value`` below a folder or a glob's fixed part are the files' partitions.

    Raises:
        SourceError: one of them matches nothing; names it, and what stands nearby.
    """
    found: dict[str, File] = {}
    passed_over: dict[str, list[str]] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        names, root, chosen = _match(path)
        meant = [name for name in names if chosen or name.endswith(extensions)]
        if not meant:
            raise SourceError(f"{path}: {_nothing(path, extensions)}")
        passed_over[path] = names
        for name in meant:
            if name not in found:
                found[name] = replace(stat(name), partition=_partition(name, root))
    notes = []
    for path, others in passed_over.items():
        unread = sorted(name for name in others if name not in found)
        if unread:
            notes.append(
                f"{path}: {len(unread):,} {'file does' if len(unread) == 1 else 'files do'} not end in "
                f"{', '.join(extensions)} and {'is' if len(unread) == 1 else 'are'} not read: {named(unread)}"
            )
    return Listing(tuple(found[name] for name in sorted(found)), tuple(notes))


def _match(path: str) -> tuple[list[str], str | None, bool]:
    """Names that a path means, the folder from which on their folders count, and whether any ending is meant."""
    fs, inner = filesystem(path)
    try:
        # Over HTTP, asking whether something is a folder downloads it: ask for files first.
        if fs.isfile(inner):
            return [_unstrip(fs, inner)], None, True
        if fs.isdir(inner):
            root = inner.rstrip("/") + "/"
            below = [name for name in fs.find(inner) if not is_hidden(name.removeprefix(root))]
            return [_unstrip(fs, name) for name in below], _unstrip(fs, root), False
        if any(mark in inner for mark in _MARKS):
            fixed = re.split(r"[*?\[]", inner)[0].rpartition("/")[0] + "/"
            return [_unstrip(fs, name) for name in fs.glob(inner) if not fs.isdir(name)], _unstrip(fs, fixed), True
    except Exception as error:  # remote file systems raise what their client libraries raise
        raise SourceError(f"{path}: cannot be listed: {error}") from error
    return [], None, True


def is_hidden(path: str) -> bool:
    """Whether a file below a source's folder is passed over: a part of its path starts with a dot or underscore."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _partition(name: str, root: str | None) -> tuple[tuple[str, str | None], ...]:
    """Keys and values of the folders ``key=value`` between ``root`` and a file; a later one of a key stands."""
    if root is None:
        return ()
    found: dict[str, str | None] = {}
    for part in name.removeprefix(root).split("/")[:-1]:
        key, equals, value = map(unquote, part.partition("="))
        if key and equals:
            found[key] = None if value == _NO_VALUE else value
    return tuple(found.items())


def _nothing(path: str, extensions: tuple[str, ...]) -> str:
    fs, inner = filesystem(path)
    if fs.isdir(inner):
        return f"this folder holds no file that ends in {', '.join(extensions)}"
    if any(mark in inner for mark in _MARKS):
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


def folders(paths: Sequence[str]) -> list[str]:
    """The folders that paths, globs and URLs mean, each once, sorted by name.

    Raises:
        SourceError: one of them matches no folder.
    """
    found: set[str] = set()
    for path in paths:
        fs, inner = filesystem(path)
        names = [inner] if fs.isdir(inner) else []
        if not names and any(mark in inner for mark in _MARKS):
            names = [name for name in fs.glob(inner) if fs.isdir(name)]
        if not names:
            raise SourceError(f"{path}: {_nothing(path, ())}")
        found.update(_unstrip(fs, name) for name in names)
    return sorted(found)


def partition_types(files: Sequence[File]) -> dict[str, pa.DataType]:
    """The columns that the files' folders stand for; a file whose path lacks one of them has nulls there."""
    values: dict[str, dict[str | None, None]] = {}
    for file in files:
        for key, value in file.partition:
            values.setdefault(key, {})[value] = None
    return {key: _kind(list(those)) for key, those in values.items()}


def partition_column(file: File, key: str, kind: pa.DataType, rows: int) -> pa.Array:
    """One of those columns, for some rows of a file.

    Raises:
        SourceError: the value is not of the type.
    """
    value = dict(file.partition).get(key)
    try:
        return pa.repeat(pa.scalar(value, pa.string()).cast(kind), rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(f"{file.path}: its folder says {key}={value}, which is no {kind}: {error}") from error


def check_partitions(file: File, columns: Iterable[str]) -> None:
    """Check that a file has no column of the name of a folder of its own.

    Raises:
        SourceError: it has.
    """
    for key, value in file.partition:
        if key in columns:
            raise SourceError(
                f"{file.path}: it has a column {key!r}, and its folder {key}={value} says so too: rename one of them, "
                "or give the folders below as `path`, whose own names then count for nothing"
            )


def _kind(values: list[str | None]) -> pa.DataType:
    texts = pa.array(values, pa.string())
    if texts.null_count == len(texts):
        return pa.string()
    try:
        texts.cast(pa.int32())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.int32()
