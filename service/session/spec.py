"""Specification of a session: what a client asks for when it creates one."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.service.session.methods.registry import METHODS

SESSION_ID = r"^[A-Za-z0-9_-]{1,64}$"
MAX_BATCH_SIZE = 1 << 20
MAX_SIZE = 1 << 40


class Grace(BaseModel):
    """How long the end of an epoch is waited for: both must hold before it is gone on without the missing reports."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    after_seconds: float = Field(
        ge=0, le=1e9, allow_inf_nan=False, description="since the next epoch was asked for first"
    )
    quorum: float = Field(default=0, ge=0, le=1, description="share of the ranks whose reports must be complete")


OnMissing = Annotated[
    Literal["wait", "skip"] | Grace,
    Field(
        description="at an epoch's end: wait for every report, go on without the missing ones, or wait for some time"
    ),
]
NonFinite = Annotated[
    Literal["reject", "keep"],
    Field(description="losses that are NaN or infinite: refuse the report, or take them as 'unknown'"),
]


class SessionSpec(BaseModel):
    """What a session is. After creation only :class:`SpecChange` changes it."""

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
    planned_epochs: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="epochs that a method plans for which ends its pruning before the last of them; None: epochs",
    )
    on_missing: OnMissing = "wait"
    non_finite: NonFinite = "keep"
    parameters: dict[str, Any] = Field(default_factory=dict, description="the method's own")

    @model_validator(mode="after")
    def _has_candidates(self) -> "SessionSpec":
        if self.size is None and self.dataset is None:
            raise ValueError("name the candidates: give size, or dataset")
        return self

    def changed(self, change: "SpecChange") -> "SessionSpec":
        """This with a change. Epochs that are added leave the orders of those before them as they were.

        Raises:
            ValueError: it would take epochs away.
        """
        values = change.model_dump(exclude_none=True) | {"on_missing": change.on_missing or self.on_missing}
        epochs = values.get("epochs", self.epochs)
        if epochs < self.epochs:
            raise ValueError(f"epochs can only be raised: they are {self.epochs}, and not to be {epochs}")
        if epochs > self.epochs:
            values["planned_epochs"] = self.planned_epochs or self.epochs
        return self.model_copy(update=values)


class SpecChange(BaseModel):
    """What may change while a session runs; None: it stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    on_missing: OnMissing | None = None
    non_finite: NonFinite | None = None
    epochs: int | None = Field(default=None, ge=1, le=1_000_000, description="more than there are now")
