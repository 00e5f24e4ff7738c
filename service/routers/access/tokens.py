"""``/v1/tokens``: make, look at, rotate and revoke bearer tokens; for admin tokens."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from curation.service.access.tokens import MAX_NAME, OWNER, TokenError, issue_token, renew_token
from curation.service.errors import Refusal
from curation.service.http.bodies import read_model
from curation.service.http.dependencies import Administrator, App
from curation.service.http.openapi import problems, takes_json
from curation.service.store import Token
from curation.service.store.tokens import read_tokens, revoke_token

router = APIRouter(prefix="/v1/tokens", tags=["access"])

TokenId = Annotated[str, Path(pattern="^[0-9a-f]{1,32}$", description="the token's id")]
_LONGEST = 3_155_760_000  # a hundred years


class NewToken(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]+$", description="who or what it is for")
    owner: str | None = Field(
        default=None,
        pattern=f"^{OWNER.pattern}$",
        description="whose sessions it makes and uses; null: those of this token only",
    )
    scopes: list[str] = Field(default=["select"], min_length=1, description="read, read-all, select, admin")
    expires_in: float | None = Field(default=None, gt=0, lt=_LONGEST, description="seconds; null: it does not expire")
    adopt: bool | None = Field(
        default=None, description="whether the owner gets the sessions that were made without a token"
    )


class Rotation(BaseModel):
    """How a token gets a new secret."""

    model_config = ConfigDict(extra="forbid", strict=True)

    grace: float = Field(default=86_400, ge=0, lt=_LONGEST, description="seconds for which the old secret stays good")
    expires_in: float | None = Field(default=None, gt=0, lt=_LONGEST, description="seconds; null: it ends as before")


class TokenState(BaseModel):
    """A token without its secret. Times are seconds since 1970, UTC."""

    id: str
    name: str
    owner: str
    scopes: list[str]
    created: float
    expires: float | None
    used: float | None = Field(description="when it was last used, a minute late at most")
    revoked: float | None
    old_until: float | None = Field(description="until when the secret before the last rotation is good")

    @classmethod
    def of(cls, token: Token) -> "TokenState":
        """What may be told of a token: neither a secret nor a hash."""
        facts = {name: value for name, value in token._asdict().items() if name in cls.model_fields}
        return cls(**facts | {"scopes": sorted(token.scopes)})


class Secret(TokenState):
    """A token with its secret, which is shown this once."""

    token: str = Field(description="send it as 'Authorization: Bearer cur_…'")


class TokenList(BaseModel):
    """All tokens, oldest first."""

    tokens: list[TokenState]


@router.get("", responses=problems(401, 403, 503))
async def list_tokens(app: App, caller: Administrator) -> TokenList:
    """All tokens, ended ones too."""
    stored = await asyncio.to_thread(read_tokens, app.store)
    return TokenList(tokens=[TokenState.of(token) for token in stored])


@router.post(
    "",
    status_code=201,
    responses=problems(400, 401, 403, 413, 415, 422, 503),
    openapi_extra=takes_json(NewToken),
)
async def create_token(request: Request, response: Response, app: App, caller: Administrator) -> Secret:
    """Make a token. Its secret is in the answer, and nowhere else: the store keeps a hash."""
    asked = await read_model(request, NewToken)

    def make() -> tuple[Token, str]:
        return issue_token(
            app.store,
            asked.name,
            frozenset(asked.scopes),
            owner=asked.owner,
            lasts=asked.expires_in,
            adopt=asked.adopt,
            caller=caller,
        )

    token, secret = await asyncio.to_thread(make)
    response.headers.update({"Location": f"/v1/tokens/{token.id}", "Cache-Control": "no-store"})
    return Secret(**TokenState.of(token).model_dump(), token=secret)


@router.post(
    "/{id}/rotate",
    responses=problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra=takes_json(Rotation),
)
async def rotate_token(id: TokenId, request: Request, response: Response, app: App, caller: Administrator) -> Secret:
    """Give a token a new secret. The old one stays good for a time of grace."""
    asked = await read_model(request, Rotation)

    def rotate() -> tuple[Token, str]:
        try:
            return renew_token(app.store, id, grace=asked.grace, lasts=asked.expires_in, caller=caller)
        except TokenError as error:
            raise Refusal("not-found", str(error)) from error

    token, secret = await asyncio.to_thread(rotate)
    response.headers["Cache-Control"] = "no-store"
    return Secret(**TokenState.of(token).model_dump(), token=secret)


@router.delete("/{id}", status_code=204, responses=problems(401, 403, 404, 422, 503))
async def delete_token(id: TokenId, app: App, caller: Administrator) -> None:
    """Revoke a token. Servers notice within their ``token_seconds``; repeating it changes nothing."""
    if await asyncio.to_thread(revoke_token, app.store, caller, id):
        return
    if all(token.id != id for token in await asyncio.to_thread(read_tokens, app.store)):
        raise Refusal("not-found", f"there is no token {id!r}")


SCHEMAS: tuple[type[BaseModel], ...] = (NewToken, Rotation)
