"""Models of the routes of sessions: their bodies and their answers."""

from pydantic import BaseModel, ConfigDict, Field

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


class SessionState(BaseModel):
    """A session as it stands. ``total_steps`` is null until its last epoch is open."""

    id: str
    generation: int
    created: float = Field(description="seconds since 1970, UTC")
    size: int
    spec: SessionSpec
    stateful: bool = Field(description="whether epochs depend on reports")
    open_epochs: int
    open_steps: int = Field(description="steps of the open epochs: the first that is not open yet")
    total_steps: int | None
    resident_bytes: int
    ranks: list[RankState] = Field(description="ranks that asked or reported; at most 1,000")


class SessionSummary(BaseModel):
    """One line of the list."""

    id: str
    method: str
    size: int
    epochs: int
    world_size: int
    created: float


class SessionList(BaseModel):
    """A page of sessions, oldest first. Pass ``next`` as ``after`` for the following page; null: this is the last."""

    sessions: list[SessionSummary]
    next: int | None


class Rewind(BaseModel):
    """Where to go on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int = Field(description="the next step that will be asked for; reports from it on are forgotten")


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
