"""Fingerprints of what a result depends on besides rows and parameters: code, files, folders, installed packages.

Each is a name with a mark that changes with it: a hash of contents, or a version. Code is the file of a module and of
every module that it imports, wherever in it the import stands. Installed packages count by their version.
"""

import ast
import hashlib
import importlib.util
import inspect
import operator
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from curation.dataset.manifest import sha256_of
from curation.recipe.model import FileSource, StdlibSource
from curation.sources import open_source

HASHED = "sha256:"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words: ``"torch is 2.13.0, and was 2.12.0"``."""
    words: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if HASHED in f"{old}{new}" or isinstance(old or new, dict | list):
            words.append(f"{name} changed")
        else:
            words.append(f"{name} is {new}, and was {old}")
    return words


def packages(*names: str) -> dict[str, str]:
    """The version of each of these packages that is installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def sources(value: Any) -> dict[str, str]:
    """The fingerprint of each file behind the sources in a value, at any depth: a model, a list, a dict.

    Raises:
        SourceError: one cannot be read.
    """
    if isinstance(value, FileSource | StdlibSource):
        return {record.path: record.fingerprint for record in open_source(value).inputs()}
    parts: Iterable[Any] = ()
    if isinstance(value, BaseModel):
        parts = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    return {name: mark for part in parts for name, mark in sources(part).items()}


def paths(value: Any) -> dict[str, str]:
    """The hash of each file and folder that a text in a value names, at any depth, relative to where this runs."""
    if isinstance(value, str):
        try:
            return {value: contents(Path(value))} if value and Path(value).exists() else {}
        except OSError:  # too long for a name
            return {}
    parts: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return {name: mark for part in parts for name, mark in paths(part).items()}


def contents(path: Path) -> str:
    """``sha256:…`` of a file, or of the names and contents of all files below a folder; hidden ones do not count."""
    if not path.is_dir():
        return HASHED + _file(path)
    files = (file for file in path.rglob("*") if file.is_file())
    named = {file.relative_to(path): file for file in files}
    hidden = ("__pycache__", ".")
    return HASHED + _digest(
        {
            name.as_posix(): _file(file)
            for name, file in named.items()
            if not any(part.startswith(hidden) for part in name.parts)
        }
    )


def code(name: str) -> dict[str, str]:
    """The code behind ``module:attribute``: its hash, and the versions of the installed packages that it imports."""
    module, _, attribute = name.partition(":")
    modules, imported = _closure(module)
    if modules:
        return {name: code_hash(name), **packages(*sorted({each for top in imported for each in _packages_of(top)}))}
    if module == "__main__":
        return {name: HASHED + hashlib.sha256(_typed_source(attribute).encode()).hexdigest()}
    # Of the standard library, or ours.
    return packages("curation") if module.startswith("curation.") else {"python": platform.python_version()}


def _typed_source(attribute: str) -> str:
    """The source of what was typed into a notebook; where it is not known, something that is never the same."""
    try:
        return inspect.getsource(operator.attrgetter(attribute)(sys.modules["__main__"]))
    except (OSError, TypeError, AttributeError):
        return uuid4().hex


def code_hash(name: str) -> str:
    """``sha256:…`` of the code behind ``module:attribute``; where it has no file, of nothing."""
    modules, _ = _closure(name.partition(":")[0])
    return HASHED + _digest({module: _file(path) for module, path in modules.items()})


def local_modules(name: str) -> dict[str, tuple[Path, str]]:
    """File and hash of each module behind ``module:attribute`` that may be edited: that is not installed."""
    modules, _ = _closure(name.partition(":")[0])
    return {module: (path, _file(path)) for module, path in modules.items() if not _is_installed(path)}


def _closure(module: str) -> tuple[dict[str, Path], set[str]]:
    """The files of a module and of those that it imports, by module; and the top-level names that are installed."""
    files: dict[str, Path] = {}
    installed: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in files or top == "curation" or top in sys.stdlib_module_names:
            continue
        path, inside = _located(name)
        if path is None:
            continue
        if _is_installed(path):
            installed.add(top)
            if name != module:
                continue
        files[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if path.suffix == ".py" and not _is_installed(path):
            status = path.stat()
            package = name.rpartition(".")[0] if inside is None else name
            waiting += _imports(path, package, status.st_mtime_ns, status.st_size)
    return files, installed


def _located(name: str) -> tuple[Path | None, list[str] | None]:
    """A module's file, and the folders of its submodules: where it would be imported from now. Imports nothing."""
    if name == "__main__":
        file = getattr(sys.modules[name], "__file__", None)
        return None if file is None else Path(file), None
    above, _, last = name.rpartition(".")
    folders = _located(above)[1] if above else None
    if above and folders is None:
        return None, None
    # By its last name, in the folders above: with the whole name, what is above would have to be imported.
    spec = PathFinder.find_spec(last, folders)
    if spec is None and not above:
        # What is installed to be edited may be found by a finder of its own.
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return None, None
    inside = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    file = spec.origin
    return Path(file) if file is not None and Path(file).is_file() else None, inside


@lru_cache(maxsize=4096)
def _imports(path: Path, package: str, modified: int, size: int) -> list[str]:
    """What a file imports; read once while its stamp stays."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    return list(_imported(tree, package))


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@cache
def _packages_of(top: str) -> tuple[str, ...]:
    """The packages that a top-level module comes from."""
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        return tuple(_distributions().get(top, ()))
    return (top,)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _file(path: Path) -> str:
    status = path.stat()
    return _hashed(path, status.st_mtime_ns, status.st_ino, status.st_size)


@lru_cache(maxsize=65_536)
def _hashed(path: Path, modified: int, inode: int, size: int) -> str:
    """A file's hash; read once while its stamp stays."""
    return sha256_of(path)


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name} {parts[name]}" for name in sorted(parts)).encode()).hexdigest()
