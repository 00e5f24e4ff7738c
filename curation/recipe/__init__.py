"""Recipes: where candidates come from, what is done with them, and how the result is laid out."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.recipe.load import load_recipe as load_recipe
    from curation.recipe.model import Acquire as Acquire
    from curation.recipe.model import Align as Align
    from curation.recipe.model import Dedup as Dedup
    from curation.recipe.model import Embed as Embed
    from curation.recipe.model import FileSource as FileSource
    from curation.recipe.model import MineB3 as MineB3
    from curation.recipe.model import Output as Output
    from curation.recipe.model import Recipe as Recipe
    from curation.recipe.model import Resources as Resources
    from curation.recipe.model import Score as Score
    from curation.recipe.model import Source as Source
    from curation.recipe.model import StdlibSource as StdlibSource
    from curation.recipe.model import Step as Step
    from curation.recipe.model import StepOrderError as StepOrderError
    from curation.recipe.model import check_order as check_order

__all__ = [
    "Acquire",
    "Align",
    "Dedup",
    "Embed",
    "FileSource",
    "MineB3",
    "Output",
    "Recipe",
    "Resources",
    "Score",
    "Source",
    "StdlibSource",
    "Step",
    "StepOrderError",
    "check_order",
    "load_recipe",
]

__getattr__ = face(
    __name__,
    {
        "Acquire": "model",
        "Align": "model",
        "Dedup": "model",
        "Embed": "model",
        "FileSource": "model",
        "MineB3": "model",
        "Output": "model",
        "Recipe": "model",
        "Resources": "model",
        "Score": "model",
        "Source": "model",
        "StdlibSource": "model",
        "Step": "model",
        "StepOrderError": "model",
        "check_order": "model",
        "load_recipe": "load",
    },
)
