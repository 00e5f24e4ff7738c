"""Responses of the service, as its clients read them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import CurationError
from curation.plan import BatchPlan
from curation.selection import Selection


class ServiceError(CurationError):
    """The service refused a request, or could not be reached in time.

    Args:
        kind: the problem's kind, such as ``"bad-report"``; ``"unreachable"`` where there was no answer.
        detail: what the server says.
        status: the HTTP status, None without an answer.
        members: the problem document's further members.
    """

    def __init__(
        self, kind: str, detail: str, status: int | None = None, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.status = status
        self.members = dict(members or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.detail, self.status, self.members)


class StepBatch(NamedTuple):
    """What a rank trains on at a step: ``indices`` int64[n], ``weights`` float32[n].

    ``epoch_end`` is the step after the epoch's last. ``step`` None: it was only a report. ``ignored``: steps that were
    reported before, with other losses, which count.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    epoch: int | None
    step: int | None
    epoch_end: int
    end_of_epoch: bool
    end_of_session: bool
    generation: int
    ignored: tuple[int, ...] = ()


class ChosenBatch(NamedTuple):
    """What a rank trains on of a super-batch, in pick order: ``indices`` int64[n], ``weights`` float32[n].

    ``positions`` int64[n] in the super-batch of all ranks; ``scores`` float32[n], the logits (nats) drawn at.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    epoch: int
    step: int
    epoch_end: int
    end_of_epoch: bool
    end_of_session: bool
    generation: int


class StepRows(NamedTuple):
    """Rows that a step handed out, by rank and position: of a super-batch, those chosen.

    ``ranks`` int32[n], ``positions`` int64[n] in the rank's batch, ``rows`` int64[n], ``weights`` float32[n],
    ``losses`` float32[n] (NaN where none was reported), ``reported`` bool[n], ``scores`` float32[n], the logits (nats)
    that rows were chosen at, or None. ``chosen`` False: nothing is chosen of the super-batch yet, and these are its
    rows; None: the method chooses from none.
    """

    epoch: int
    step: int
    chosen: bool | None
    ranks: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float32]
    reported: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class SessionInfo:
    """How a session stands. ``raw`` is the whole answer, with each rank's progress."""

    id: str
    generation: int
    size: int
    world_size: int
    epochs: int
    open_epochs: int
    open_steps: int
    total_steps: int | None
    raw: Mapping[str, Any]

    @property
    def from_step(self) -> int:
        """Where the newest ranks began: 0, or the step at which the session was last resized."""
        segments = self.raw.get("segments") or [{"from_step": 0}]
        return int(segments[-1]["from_step"])


def read_error(answer: httpx.Response) -> ServiceError:
    try:
        document = answer.json()
        kind = str(document.pop("type")).removeprefix("urn:curation:problem:")
        return ServiceError(kind, str(document.pop("detail")), answer.status_code, document)
    except (ValueError, KeyError, AttributeError):
        return ServiceError("bad-answer", f"status {answer.status_code}: {answer.text[:200]}", answer.status_code)


def read_json(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()  # type: ignore[no-any-return]


def read_info(answer: httpx.Response) -> SessionInfo:
    raw = answer.json()
    fields = {name: raw[name] for name in ("id", "generation", "size", "open_epochs", "open_steps", "total_steps")}
    return SessionInfo(
        **fields, world_size=raw.get("world_size", raw["spec"]["world_size"]), epochs=raw["spec"]["epochs"], raw=raw
    )


def read_step(answer: httpx.Response) -> StepBatch:
    with pa.ipc.open_stream(answer.content) as reader:
        rows = reader.read_next_batch()
    metadata = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()}
    return StepBatch(
        _copied(rows["indices"]),
        _copied(rows["weights"]),
        int(metadata["epoch"]) if metadata["epoch"] else None,
        int(metadata["step"]) if metadata["step"] else None,
        int(metadata["epoch_end"] or 0),
        metadata["end_of_epoch"] == "1",
        metadata["end_of_session"] == "1",
        int(metadata["generation"]),
        tuple(json.loads(metadata.get("ignored", "[]"))),
    )


def read_batches(answer: httpx.Response) -> tuple[dict[int, list[StepBatch]], tuple[int, ...]]:
    """By rank its batches; and the steps of which other losses were reported before."""
    table = pa.ipc.open_stream(answer.content).read_all().combine_chunks()
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    ignored = tuple(json.loads(metadata.get("ignored", "[]")))
    if not len(table):
        return {}, ignored
    epoch, epoch_end, generation = (int(metadata[name]) for name in ("epoch", "epoch_end", "generation"))
    ends = metadata["end_of_session"] == "1"
    columns = (table[name].chunk(0) for name in ("indices", "weights"))
    rows = [[_copied(column[row].values) for row in range(len(table))] for column in columns]
    batches: dict[int, list[StepBatch]] = {}
    for rank, step, indices, weights in zip(table["rank"].to_pylist(), table["step"].to_pylist(), *rows, strict=True):
        last = step == epoch_end - 1
        batch = StepBatch(indices, weights, epoch, step, epoch_end, last, last and ends, generation)
        batches.setdefault(rank, []).append(batch)
    return batches, ignored


def read_chosen(answer: httpx.Response) -> ChosenBatch:
    table = pa.ipc.open_stream(answer.content).read_all()
    columns = ("indices", "weights", "positions", "scores")
    metadata = {name.decode(): int(value) for name, value in table.schema.metadata.items()}
    indices, weights, positions, scores = (_copied(table[name]) for name in columns)
    return ChosenBatch(
        indices,
        weights,
        positions,
        scores,
        metadata["epoch"],
        metadata["step"],
        metadata["epoch_end"],
        bool(metadata["end_of_epoch"]),
        bool(metadata["end_of_session"]),
        metadata["generation"],
    )


def read_step_rows(answer: httpx.Response) -> StepRows:
    table = pa.ipc.open_stream(answer.content).read_all()
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    ranks, positions, rows, weights, losses, reported = (
        _copied(table[name]) for name in ("rank", "position", "row", "weight", "loss", "reported")
    )
    return StepRows(
        int(metadata["epoch"]),
        int(metadata["step"]),
        bool(int(metadata["chosen"])) if metadata["chosen"] else None,
        ranks,
        positions,
        rows,
        weights,
        losses,
        reported,
        _copied(table["score"]) if "score" in table.column_names else None,
    )


def _copied(column: Any) -> npt.NDArray[Any]:
    """A copy: torch warns of arrays that cannot be written to, as views of an answer cannot."""
    return np.array(column.to_numpy())


def read_selection(answer: httpx.Response) -> Selection:
    table = pa.ipc.open_stream(answer.content).read_all()
    scores = table["scores"].to_numpy() if "scores" in table.column_names else None
    return Selection(indices=table["indices"].to_numpy(), weights=table["weights"].to_numpy(), scores=scores)


def read_plan(answer: httpx.Response) -> BatchPlan:
    return BatchPlan.from_arrow(pa.ipc.open_stream(answer.content).read_all())
