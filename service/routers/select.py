"""``/v1/select``: a selection from what is sent along; nothing is kept.

JSON has everything in one object. With Arrow, arrays are columns (a matrix is a column of fixed-size lists), and the
rest is a JSON object in the schema's metadata, under ``request``.
"""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.http.arrays import Matrix, check_count, compute, matrix_of, read_arrays
from curation.service.http.bodies import ARROW, wants_arrow, write_plan, write_selection
from curation.service.http.dependencies import App, AppState, Selector
from curation.service.http.openapi import arrow_body, problems, takes

router = APIRouter(prefix="/v1/select", tags=["select"])

Whole = Annotated[int, Field(strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ZipFitBody(_Body):
    """The k texts that compress best with the targets; see :class:`curation.ZipFit`."""

    texts: list[str] = Field(description="candidates; with Arrow the column texts")
    targets: list[str] = Field(min_length=1)
    k: int = Field(ge=1)
    codec: Literal["lz4", "gzip", "zstd"] = "lz4"
    level: int | None = None
    mode: Literal["exact", "shortlist"] = "exact"
    shortlist_fraction: float = Field(default=0.03, gt=0, le=1)


class AcquireBody(_Body):
    """A draw of k by scores; see :class:`curation.StochasticAcquisition`."""

    scores: list[float] = Field(description="one a candidate; with Arrow the column scores")
    k: int = Field(ge=0)
    kind: Literal["power", "softmax", "soft-rank"] = "power"
    beta: float = Field(default=1.0, ge=0)
    shift: float | Literal["lowest"] = Field(
        default=0.0, description="power: added to all scores; or lowest: less the lowest of them"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class JestBody(_Body):
    """The best part of a super-batch of B pairs; see :class:`curation.JEST`. One that is ignored may be left out."""

    learner_a: Matrix | None = Field(default=None, description="[B, D] embeddings")
    learner_b: Matrix | None = None
    learner_scale: float = 1.0
    learner_bias: float = 0.0
    reference_a: Matrix | None = None
    reference_b: Matrix | None = None
    reference_scale: float = 1.0
    reference_bias: float = 0.0
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    filter_ratio: float = Field(default=0.8, ge=0, lt=1)
    chunks: int = Field(default=16, ge=1)
    criterion: Literal["learnability", "hard", "easy"] = "learnability"
    joint: bool = True
    own_positive: bool = False
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class B3Body(_Body):
    """Batches of hard negatives; see :class:`curation.B3`."""

    queries: Matrix = Field(description="[N, D] embeddings")
    positives: Matrix = Field(description="[N, D] embeddings, row i belonging to query i")
    batch_size: int = Field(default=1024, ge=1)
    cluster_size: int = Field(default=32, ge=1)
    ranks: Annotated[tuple[Whole, Whole], Field(strict=False)] = (30, 130)
    edges: Literal["mutual", "either"] = "mutual"
    repulsion: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    last: Literal["keep", "drop"] = "keep"
    negatives: int = Field(default=0, ge=0, le=100)
    similarity_ceiling: float | None = None
    positive_margin: float | None = None
    metric: Literal["ip", "l2"] = "ip"
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class SelectionAnswer(BaseModel):
    """Positions in pick order, with weights and scores (null where the method has none)."""

    indices: list[int]
    weights: list[float]
    scores: list[float | None] | None


class PlanAnswer(BaseModel):
    """Positions, a list for each batch."""

    batches: list[list[int]]


_PROBLEMS = problems(400, 401, 403, 406, 413, 415, 422, 503)
_SELECTION: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: arrow_body("SelectionAnswer")}, "description": "The choice"},
    **_PROBLEMS,
}
_PLAN: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: arrow_body("PlanAnswer")}, "description": "The batches"},
    **_PROBLEMS,
}


@router.post("/zipfit", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(ZipFitBody))
async def zipfit(request: Request, app: App, caller: Selector) -> Response:
    """Texts by how well they compress together with the targets (ZIP-FIT)."""
    arrow = wants_arrow(request)
    body, columns = await read_arrays(request, ZipFitBody, ("texts",), app.settings.max_body_bytes)
    texts = columns.get("texts", body.texts)
    check_count("texts", len(texts), app.settings.max_texts)
    check_count("texts × targets", len(texts) * len(body.targets), app.settings.max_text_pairs)

    def work() -> Selection:
        from curation.selectors.zipfit import ZipFit

        return ZipFit(**body.model_dump(exclude={"texts", "k"})).select(texts, body.k)

    return write_selection(await compute(app.select_slots, work), arrow)


@router.post("/acquire", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(AcquireBody))
async def acquire(request: Request, app: App, caller: Selector) -> Response:
    """Candidates drawn by their scores, without replacement (stochastic batch acquisition)."""
    arrow = wants_arrow(request)
    body, columns = await read_arrays(request, AcquireBody, ("scores",), app.settings.max_body_bytes)
    scores = columns["scores"].to_numpy() if columns else np.array(body.scores, np.float64)
    check_count("scores", len(scores), app.settings.max_rows)

    def work() -> Selection:
        from curation.selectors.acquisition import StochasticAcquisition

        method = StochasticAcquisition(kind=body.kind, beta=body.beta, shift=body.shift)
        return method.select(scores, body.k, seed=(body.seed,))

    return write_selection(await compute(app.select_slots, work), arrow)


@router.post("/jest", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(JestBody))
async def jest(request: Request, app: App, caller: Selector) -> Response:
    """The part of a super-batch that is jointly most learnable (JEST)."""
    arrow = wants_arrow(request)
    names = ("learner_a", "learner_b", "reference_a", "reference_b")
    body, columns = await read_arrays(request, JestBody, names, app.settings.max_body_bytes)
    sides = {name: _matrix(name, columns.get(name, getattr(body, name)), app) for name in names}

    def pair(model: str) -> Pair | None:
        import torch

        a, b = sides[f"{model}_a"], sides[f"{model}_b"]
        if a is None or b is None:
            return None
        scale, bias = getattr(body, f"{model}_scale"), getattr(body, f"{model}_bias")
        return Pair(torch.from_numpy(a), torch.from_numpy(b), scale, bias)

    def work() -> Selection:
        import torch

        from curation.selectors.jest import JEST

        parameters = {"loss", "filter_ratio", "chunks", "criterion", "joint", "own_positive"}
        method = JEST(**body.model_dump(include=parameters))
        return method.select(pair("learner"), pair("reference"), generator=torch.Generator().manual_seed(body.seed))

    return write_selection(await compute(app.select_slots, work), arrow)


@router.post("/b3", response_model=PlanAnswer, responses=_PLAN, openapi_extra=takes(B3Body))
async def b3(request: Request, app: App, caller: Selector) -> Response:
    """Batches whose rows are hard negatives of each other (B3)."""
    arrow = wants_arrow(request)
    body, columns = await read_arrays(request, B3Body, ("queries", "positives"), app.settings.max_body_bytes)
    queries = _matrix("queries", columns.get("queries", body.queries), app)
    positives = _matrix("positives", columns.get("positives", body.positives), app)

    def work() -> BatchPlan:
        from curation.selectors.b3 import B3

        method = B3(**body.model_dump(exclude={"queries", "positives", "seed"}))
        return method.plan(queries, positives, seed=body.seed)

    return write_plan(await compute(app.select_slots, work), arrow)


def _matrix(name: str, values: Any, app: AppState) -> Any:
    matrix = matrix_of(name, values)
    if matrix is not None:
        check_count(name, len(matrix), app.settings.max_pairs)
    return matrix


SCHEMAS: tuple[type[BaseModel], ...] = (ZipFitBody, AcquireBody, JestBody, B3Body)
