"""Recipes: where candidates come from, what is done with them, and how the result is laid out."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.recipe.load import load_recipe as load_recipe
    from curation.recipe.model import FileSource as FileSource
    from curation.recipe.model import MemorySource as MemorySource
    from curation.recipe.model import Output as Output
    from curation.recipe.model import Recipe as Recipe
    from curation.recipe.model import Resources as Resources
    from curation.recipe.model import SourceSpec as SourceSpec
    from curation.recipe.model import StdlibSource as StdlibSource
    from curation.recipe.model import StepOrderError as StepOrderError
    from curation.recipe.model import check_order as check_order
    from curation.recipe.model import recipe_sha256 as recipe_sha256

__all__ = [
    "FileSource",
    "MemorySource",
    "Output",
    "Recipe",
    "Resources",
    "SourceSpec",
    "StdlibSource",
    "StepOrderError",
    "check_order",
    "load_recipe",
    "recipe_sha256",
]

__getattr__ = face(
    __name__,
    {
        "FileSource": "model",
        "MemorySource": "model",
        "Output": "model",
        "Recipe": "model",
        "Resources": "model",
        "SourceSpec": "model",
        "StdlibSource": "model",
        "StepOrderError": "model",
        "check_order": "model",
        "load_recipe": "load",
        "recipe_sha256": "model",
    },
)
