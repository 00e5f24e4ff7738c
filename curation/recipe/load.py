"""Recipes on disk: YAML, checked with file, line and key."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from curation.errors import RecipeError
from curation.recipe.model import MemorySource, Recipe, StepOrderError


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; its relative paths become absolute.

    Raises:
        RecipeError: names the file, the line and the key.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        raise RecipeError(f"{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: a recipe is a mapping with the keys source, steps, output, seed")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(_describe(file, root, error)) from error
    if isinstance(recipe.source, MemorySource):
        raise RecipeError(f"{file}: format: memory stands for rows that a program hands over: name files, or stdlib")
    return recipe.resolved(file.parent.resolve())


def _describe(file: Path, root: yaml.Node | None, error: ValidationError) -> str:
    lines = []
    for issue in error.errors():
        loc, context = issue["loc"], issue.get("ctx", {})
        message = issue["msg"].removeprefix("Value error, ")
        if issue["type"] == "extra_forbidden":
            message = "unknown key"
        elif issue["type"] == "missing":
            message = "this key must be there"
        elif issue["type"] == "union_tag_invalid":
            loc = (*loc, context["discriminator"].strip("'"))
            known = context["expected_tags"].replace(", 'memory'", "")
            message = f"there is no {context['tag']!r}, only {known}"
        elif issue["type"] == "union_tag_not_found":
            message = f"lacks the key {context['discriminator']}"
        elif issue["type"] == "unknown_step":
            loc = (*loc, "step")
        elif isinstance(context.get("error"), StepOrderError):
            loc = ("steps", context["error"].number - 1)
        line, keys = _locate(root, loc)
        where = f" {'.'.join(keys)}:" if keys else ""
        lines.append(f"{file}:{line}:{where} {message}")
    return "\n".join(lines)


def _locate(root: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """The line (from 1) and key path of a pydantic location; tags of discriminated unions are passed over."""
    node, line, keys = root, 1 if root is None else root.start_mark.line + 1, []
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
            keys.append(str(part + 1))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    node, line = value, key.start_mark.line + 1
                    keys.append(str(part))
                    break
            else:
                if isinstance(part, str) and not _is_tag(node, part):
                    keys.append(part)
    return line, keys


def _is_tag(node: yaml.MappingNode, part: str) -> bool:
    return any(key.value in ("step", "format") and value.value == part for key, value in node.value)


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of repeated keys silently; a recipe must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text: put numbers, dates, yes and no in quotes", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
