"""Faces of rooms: public names that load the module they live in on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module


def face(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A package's ``__getattr__``.

    Args:
        package: its name.
        homes: the module that each public name lives in, below the package, or in full from ``curation.`` on.
    """

    def load(name: str) -> object:
        if name in homes:
            home = homes[name]
            return getattr(import_module(home if home.startswith("curation.") else f"{package}.{home}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
