"""Functions and classes by name, ``module:attribute``, as recipes name what is not ours."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from curation.errors import RecipeError


def import_path() -> tuple[str, ...]:
    """Where a user's module is looked for besides the installed packages: where the command was run."""
    return (str(Path.cwd()),)


def extend_path(path: Sequence[str]) -> None:
    """Look for modules in these folders, too."""
    sys.path.extend(entry for entry in path if entry not in sys.path)


def load_function(name: str, path: Sequence[str] = ()) -> Any:
    """Import ``module:attribute``; ``path`` is searched, too.

    Raises:
        RecipeError: there is no such module or attribute.
    """
    extend_path(path)
    module, _, attribute = name.partition(":")
    try:
        function: Any = import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"function {name!r} cannot be imported: {error}") from error
    return function
