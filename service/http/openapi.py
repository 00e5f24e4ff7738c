"""OpenAPI entries that several routes share."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel

from curation.service.http.bodies import ARROW, JSON
from curation.service.http.layouts import LAYOUTS
from curation.service.http.problems import MEDIA_TYPE
from curation.service.session.methods.registry import METHODS, method_kind
from curation.service.session.spec import SESSION_ID

SessionId = Annotated[str, Path(pattern=SESSION_ID, description="the session's id")]


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entry for refusals. Whoever needs a token may have used up its owner's quota, too."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    every = sorted({*codes, 429}) if 401 in codes else codes
    return {code: {"description": "A problem document (RFC 9457)", "content": content} for code in every}


def takes_json(body: type[BaseModel]) -> dict[str, Any]:
    """A body that the route reads itself: JSON of this model."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def takes(body: type[BaseModel]) -> dict[str, Any]:
    """A body that the route reads itself: JSON of this model, or Arrow."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    content = {JSON: {"schema": schema}, ARROW: arrow_body(body.__name__)}
    return {"requestBody": {"required": True, "content": content}}


def arrow_body(name: str) -> dict[str, Any]:
    """OpenAPI's entry for an Arrow IPC stream of a layout in :data:`curation.service.http.layouts.LAYOUTS`."""
    layout = LAYOUTS[name].model_dump(mode="json")
    return {"schema": {"type": "string", "format": "binary", "description": layout["about"], "x-arrow": layout}}


def parameter_schemas() -> dict[str, dict[str, Any]]:
    """OpenAPI's schemas of the parameters of each method of sessions."""
    return {_parameters_of(name): method_kind(name).parameters.model_json_schema() for name in METHODS}


def parameters_of_any_method() -> dict[str, Any]:
    """OpenAPI's entry for the parameters of a session, whatever its method."""
    return {"anyOf": [{"$ref": f"#/components/schemas/{_parameters_of(name)}"} for name in METHODS]}


def _parameters_of(method: str) -> str:
    return f"{method}-parameters"
