"""Models of the routes of sessions: their bodies and their answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.service.session.segments import MAX_WORLD_SIZE
from curation.service.session.spec import SESSION_ID, SessionSpec


class Created(SessionSpec):
    """A session's parameters, and the id it shall have."""

    id: str | None = Field(
        default=None,
        pattern=SESSION_ID,
        description="choose one to make the request safe to repeat; None: the server's",
    )


class RankState(BaseModel):
    """How far one rank is: steps asked of this server since it started, and reports stored."""

    rank: int
    last_asked: int | None
    reports: int
    last_reported: int | None


class SegmentState(BaseModel):
    """What a resize laid out anew."""

    epoch: int
    from_step: int
    steps: int
    world_size: int
    rows: int = Field(description="rows of the epoch that were left")


class SessionState(BaseModel):
    """A session as it stands. ``total_steps`` is null until its last epoch is open."""

    id: str
    generation: int
    created: float = Field(description="seconds since 1970, UTC")
    size: int
    spec: SessionSpec
    digest: str | None = Field(
        description="of what the session was created from: the same for one of the same batches; null: older releases"
    )
    stateful: bool = Field(description="whether epochs depend on reports")
    open_epochs: int
    open_steps: int = Field(description="steps of the open epochs: the first that is not open yet")
    total_steps: int | None
    resident_bytes: int
    world_size: int = Field(description="ranks of the newest steps: the spec's, until the session is resized")
    segments: list[SegmentState] = Field(description="how it was resized, oldest first")
    ranks: list[RankState] = Field(description="ranks that asked or reported, from `first_rank` on, at most `ranks`")
    next_rank: int | None = Field(description="pass it as `first_rank` for those that follow; null: none do")


class SessionSummary(BaseModel):
    """One line of the list."""

    id: str
    method: str
    size: int
    epochs: int
    world_size: int = Field(description="ranks of the newest steps")
    created: float


class SessionList(BaseModel):
    """A page of sessions, oldest first. Pass ``next`` as ``after`` for the following page; null: this is the last."""

    sessions: list[SessionSummary]
    next: int | None


class Rewind(BaseModel):
    """Where to go on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int = Field(description="the next step that will be asked for; reports from it on are forgotten")
    request: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="any name for this rewind, with which it may be repeated: it is carried out once",
    )


class Closing(BaseModel):
    """Which epoch to go on from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: int = Field(description="the epoch whose missing reports are not waited for any longer")


class Resizing(BaseModel):
    """What to lay out anew."""

    model_config = ConfigDict(extra="forbid", strict=True)

    world_size: int = Field(ge=1, le=MAX_WORLD_SIZE, description="ranks from that step on")
    generation: int = Field(description="the session's, as you know it: it makes the request safe to repeat")
    from_step: int | None = Field(
        default=None,
        ge=0,
        description="the next step that will be asked for; null: the first that not all of its ranks reported",
    )
    trained: Literal["reported", "all"] = Field(
        default="reported",
        description="which rows of the earlier steps count as trained on; all: for trainings that do not report",
    )


class EpochState(BaseModel):
    """An open epoch: what it keeps, and the losses reported for it so far."""

    number: int
    first_step: int
    steps: int
    rows: int = Field(description="candidates it hands out")
    trained: int = Field(description="rows that are trained on: all of those, or what is chosen of them")
    size: int
    reweighted: int = Field(description="rows whose weight is not 1")
    missing: int = Field(description="reports of the epoch before that it went on without")


class EpochList(BaseModel):
    """The epochs of a session that are open."""

    epochs: list[EpochState]
    next: int | None


class StepLosses(BaseModel):
    """The finite losses of one report."""

    rank: int
    step: int
    count: int
    unknown: int = Field(description="losses that were not finite")
    mean: float | None
    low: float | None
    high: float | None


class LossList(BaseModel):
    """Reports of a run of steps, and the distribution of their losses."""

    reports: list[StepLosses]
    bins: list[float] = Field(description="edges of the histogram")
    counts: list[int]
    next: int | None = Field(description="the first step that is left out; null: there are no more reports")
