"""Recipes that ship are found by name, and all of them load."""

from pathlib import Path

import pytest

from curation.errors import RecipeError
from curation.recipe import Recipe, load_recipe
from curation.recipe.shipped import describe, find, shipped


def test_all_shipped_recipes_load_and_say_what_they_do() -> None:
    recipes = shipped()
    assert "quickstart" in recipes
    for path in recipes.values():
        assert isinstance(load_recipe(path), Recipe)
        assert describe(path).endswith(".")


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("quickstart") == find("quickstart.yaml") == shipped()["quickstart"]
    (tmp_path / "quickstart").write_text("source: {}")
    assert find("quickstart") == Path("quickstart")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"nosuch: no such file, .* quickstart"):
        find("nosuch")


def test_the_first_comment_describes(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("#\n# Two lines\n# of it.\n#\n# Not this.\nsource: {}\n")
    assert describe(recipe) == "Two lines of it."
