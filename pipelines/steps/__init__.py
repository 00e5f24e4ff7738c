"""Steps of recipes, by name: :data:`STEPS`.

To add one, write a file beside this one with a :class:`~curation.pipelines.steps.base.Step`, and name it here. A step
that lives elsewhere needs no line here: a recipe names it as ``module:Class``.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from curation.errors import RecipeError
from curation.pipelines.engine.functions import import_path, load_function

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler

    from curation.pipelines.steps.base import Step

STEPS: Mapping[str, str] = {
    "acquire": "curation.pipelines.steps.acquire:Acquire",
    "align": "curation.pipelines.steps.align:Align",
    "b3": "curation.pipelines.steps.b3:MineB3",
    "dedup": "curation.pipelines.steps.dedup:Dedup",
    "embed": "curation.pipelines.steps.embed:Embed",
    "score": "curation.pipelines.steps.score:Score",
}
"""Loaded on first use."""

_ELSEWHERE = re.compile(r"[\w.]+:[\w.]+")


def step_class(name: str) -> "type[Step]":
    """The class of a step: ours by its name, anybody's as ``module:Class``.

    Raises:
        RecipeError: there is none of that name, or it is no step.
    """
    from curation.pipelines.steps.base import Step

    if name not in STEPS and not _ELSEWHERE.fullmatch(name):
        raise RecipeError(
            f"there is no {name!r}, only {', '.join(map(repr, STEPS))}, or a step of yours as module:Class"
        )
    loaded = load_function(STEPS.get(name, name), import_path())
    if not (isinstance(loaded, type) and issubclass(loaded, Step)):
        raise RecipeError(f"{name} is no step: it must be a class made from curation.pipelines.Step")
    return loaded


def parse_step(value: Any) -> "Step":
    """A step out of a mapping, as a recipe has it; a step itself passes.

    Raises:
        pydantic.ValidationError: a parameter is unknown, missing or wrong.
        pydantic_core.PydanticCustomError: it has no name, or one that nobody knows.
    """
    from curation.pipelines.steps.base import Step

    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("step_type", "a step is a mapping with the key step")
    if not isinstance(value.get("step"), str):
        raise PydanticCustomError("step_name", "lacks the key 'step'")
    try:
        made = step_class(value["step"])
    except RecipeError as error:
        raise PydanticCustomError("unknown_step", "{reason}", {"reason": str(error)}) from error
    return made.model_validate(value)


def json_schema(handler: "GetJsonSchemaHandler") -> dict[str, Any]:
    """The JSON Schema of any step."""
    ours = [handler(step_class(name).__pydantic_core_schema__) for name in STEPS]
    other = {
        "type": "object",
        "description": "A step that lives elsewhere, with its own parameters.",
        "properties": {"step": {"type": "string", "pattern": f"^{_ELSEWHERE.pattern}$"}},
        "required": ["step"],
    }
    return {"anyOf": [*ours, other]}
