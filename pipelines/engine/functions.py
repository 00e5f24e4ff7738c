"""Functions and classes by name, ``module:attribute``, as recipes name what is not ours."""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from curation.errors import RecipeError, StepError
from curation.pipelines.engine.fingerprints import code_hash, local_modules

_added: list[str] = []
"""What :func:`extend_path` added."""
_loaded: dict[str, tuple[Path, str]] = {}
"""File and hash of each module that was loaded here for a function, as they were then."""
_expected: ContextVar[Mapping[str, str] | None] = ContextVar("expected", default=None)


def import_path() -> tuple[str, ...]:
    """Where a user's module is looked for besides the installed packages: where the command was run."""
    return (str(Path.cwd()),)


def extend_path(path: Sequence[str]) -> None:
    """Look for modules in these folders, too, and no longer in those of an earlier call: a worker serves many runs."""
    if path and list(path) != _added:
        sys.path[:] = [entry for entry in sys.path if entry not in _added]
        _added[:] = [entry for entry in path if entry not in sys.path]
        sys.path.extend(_added)


def load_function(name: str, path: Sequence[str] = ()) -> Any:
    """Import ``module:attribute``, anew where its code was edited since it was loaded here; ``path`` is searched, too.

    Raises:
        RecipeError: there is no such module or attribute.
        StepError: the code is not what :func:`expect` was told.
    """
    extend_path(path)
    module, _, attribute = name.partition(":")
    _forget_edited(name)
    try:
        with _without_bytecode():
            function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"function {name!r} cannot be imported: {error}") from error
    _loaded.update(local_modules(name))
    if expected().get(name, code_hash(name)) != code_hash(name):
        raise StepError(f"the code of {name} was edited while the run used it: run the same command again")
    return function


def expect(code: Mapping[str, str]) -> None:
    """Take only this code from now on: hashes by the name of a function, as a step's tasks must find them anywhere."""
    _expected.set(code)


def expected() -> Mapping[str, str]:
    """What :func:`expect` was told."""
    return _expected.get() or {}


def _forget_edited(name: str) -> None:
    """Have modules loaded anew where one of them was edited, or stands elsewhere now."""
    modules = local_modules(name)
    loaded = [each for each in modules if each in sys.modules]
    if any(_file_of(each) != modules[each][0] or _loaded.get(each, modules[each]) != modules[each] for each in loaded):
        importlib.invalidate_caches()
        for each in loaded:
            del sys.modules[each]


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules[module], "__file__", None)
    return None if file is None else Path(file)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Leave no bytecode of what is edited: Python takes it for current after an edit in the same second."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
