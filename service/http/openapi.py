"""OpenAPI entries that several routes share."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel

from curation.service.http.bodies import ARROW, JSON
from curation.service.http.problems import MEDIA_TYPE
from curation.service.session.spec import SESSION_ID

SessionId = Annotated[str, Path(pattern=SESSION_ID, description="the session's id")]
ARROW_BODY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


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
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, ARROW: ARROW_BODY}}}
