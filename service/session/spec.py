"""Specification of a session: what a client asks for when it creates one."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.service.session.methods.registry import METHODS

SESSION_ID = r"^[A-Za-z0-9_-]{1,64}$"
MAX_BATCH_SIZE = 1 << 20
MAX_SIZE = 1 << 40


class SessionSpec(BaseModel):
    """What a session is; it never changes after creation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str = Field(description=", ".join(METHODS), max_length=64)
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = Field(
        default=None, description="N, the number of candidates; given by the dataset where one is named"
    )
    dataset: str | None = Field(default=None, description="a curated dataset under one of the server's roots")
    batch_size: int = Field(
        ge=1,
        le=MAX_BATCH_SIZE,
        description="rows of one rank's batch; of its part of a super-batch, where the method chooses from those",
    )
    epochs: int = Field(default=1, ge=1, le=1_000_000)
    world_size: int = Field(default=1, ge=1, le=65_536, description="ranks that share each step")
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    drop_last: bool = Field(default=False, description="leave out the rows that do not fill a step on all ranks")
    on_missing: Literal["wait", "skip"] = Field(
        default="wait", description="at an epoch's end: wait for every report, or go on without the missing ones"
    )
    non_finite: Literal["reject", "keep"] = Field(
        default="reject", description="losses that are NaN or infinite: refuse the report, or take it as 'unknown'"
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="the method's own")

    @model_validator(mode="after")
    def _has_candidates(self) -> "SessionSpec":
        if self.size is None and self.dataset is None:
            raise ValueError("name the candidates: give size, or dataset")
        return self
