"""Recipes that come with the package, by name."""

from importlib.resources import files
from pathlib import Path

import yaml

from curation.errors import RecipeError


def shipped() -> dict[str, Path]:
    """Recipes in ``configs/``, by the name of their file without ``.yaml``. Service settings there are no recipes."""
    folder = files("curation.configs")
    found = {}
    for entry in folder.iterdir():
        path = Path(str(entry))
        if path.suffix == ".yaml" and {"source", "steps"} <= _keys(path):
            found[path.stem] = path
    return dict(sorted(found.items()))


def find(recipe: str) -> Path:
    """The file of a recipe given by its path or by the name of a shipped one.

    Raises:
        RecipeError: it is neither; lists what is shipped.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    recipes = shipped()
    if recipe.removesuffix(".yaml") in recipes:
        return recipes[recipe.removesuffix(".yaml")]
    raise RecipeError(
        f"{recipe}: no such file, nor a recipe that ships with this package; those are {', '.join(recipes) or 'none'}"
    )


def describe(path: Path) -> str:
    """The first comment of a recipe."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.strip("# "):
            if lines:
                break
            continue
        lines.append(line.strip("# "))
    return " ".join(lines)


def _keys(path: Path) -> set[str]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return set(loaded) if isinstance(loaded, dict) else set()
