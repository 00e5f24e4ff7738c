"""What pydantic finds wrong with a body, as a refusal. Worker processes read bodies without FastAPI and SQLAlchemy."""

from typing import Any

from pydantic import ValidationError

from curation.service.errors import Refusal


def invalid(errors: Any) -> Refusal:
    """What pydantic found wrong, with the place of each error and without the input itself."""
    mistakes = [
        {"where": ".".join(str(part) for part in error["loc"]), "what": error["msg"]} for error in list(errors)[:20]
    ]
    detail = "; ".join(f"{error['where'] or 'body'}: {error['what']}" for error in mistakes[:3])
    return Refusal("bad-body", detail, errors=mistakes)


def invalid_model(error: ValidationError) -> Refusal:
    """As :func:`invalid`, of a body that a route read itself."""
    return invalid(error.errors(include_url=False, include_context=False, include_input=False))
