"""Another cut of a finished dataset, from the scores it stored."""

import json
from pathlib import Path

from pydantic import ValidationError

from curation.dataset.manifest import Manifest
from curation.errors import RecipeError
from curation.recipe import Recipe


def recut(
    done: Path,
    manifest: Manifest,
    *,
    count: int | None,
    fraction: float | None,
    threshold: float | None,
    kind: str | None,
    beta: float | None,
    seed: int | None,
) -> Recipe:
    """The recipe of a finished dataset with other parameters of its last ``acquire`` step; None keeps a parameter.

    Raises:
        RecipeError: the recipe has no ``acquire`` step, or the parameters do not fit together.
    """
    raw = json.loads(json.dumps(manifest.recipe))
    last = next((step for step in reversed(raw["steps"]) if step["step"] == "acquire"), None)
    if last is None:
        raise RecipeError(f"{done}: its recipe has no `acquire` step, so there is no cut to change")
    sizes = {"count": count, "fraction": fraction, "threshold": threshold}
    if any(value is not None for value in sizes.values()):
        last.update(sizes)
        if threshold is not None:
            last["kind"] = "threshold"
        elif last["kind"] == "threshold":
            last["kind"] = "top-k"
    last.update({key: value for key, value in {"kind": kind, "beta": beta}.items() if value is not None})
    if seed is not None:
        raw["seed"] = seed
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        reasons = "; ".join(issue["msg"].removeprefix("Value error, ") for issue in error.errors())
        raise RecipeError(f"this cut is not possible: {reasons}") from error
