"""``/v1/select``: one choice from what is sent along; nothing is kept.

JSON has everything in one object. With Arrow, arrays are columns (a matrix is a column of fixed-size lists), and the
rest is a JSON object in the schema's metadata, under ``request``.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.bodies import (
    ARROW,
    JSON,
    is_arrow,
    read_json,
    read_tables,
    wants_arrow,
    write_plan,
    write_selection,
)
from curation.service.problems import invalid
from curation.service.routers.sessions import problems
from curation.service.routers.state import Here, Parts, Selector
from curation.service.sessions import Refusal

router = APIRouter(prefix="/v1/select", tags=["select"])

T = TypeVar("T")
Matrix = list[list[float]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


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
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class B3Body(_Body):
    """Batches of hard negatives; see :class:`curation.B3`."""

    queries: Matrix = Field(description="[N, D] embeddings")
    positives: Matrix = Field(description="[N, D] embeddings, row i belonging to query i")
    batch_size: int = Field(default=1024, ge=1)
    cluster_size: int = Field(default=32, ge=1)
    ranks: tuple[int, int] = (30, 130)
    edges: Literal["mutual", "either"] = "mutual"
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


def _documented(body: type[BaseModel]) -> dict[str, Any]:
    arrow = {"schema": {"type": "string", "format": "binary"}}
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, ARROW: arrow}}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: {"schema": {"type": "string", "format": "binary"}}}, "description": "The choice"},
    **problems(400, 401, 403, 406, 413, 415, 422, 503),
}


@router.post("/zipfit", response_model=SelectionAnswer, responses=_RESPONSES, openapi_extra=_documented(ZipFitBody))
async def zipfit(request: Request, here: Here, caller: Selector) -> Response:
    """Texts by how well they compress together with the targets (ZIP-FIT)."""
    arrow = wants_arrow(request)
    body, columns = await _read(request, ZipFitBody, ("texts",))
    texts = columns.get("texts", body.texts)
    _limit("texts", len(texts), here.settings.max_texts)
    _limit("texts × targets", len(texts) * len(body.targets), here.settings.max_text_pairs)

    def work() -> Selection:
        from curation.selectors.zipfit import ZipFit

        return ZipFit(**body.model_dump(exclude={"texts", "k"})).select(texts, body.k)

    return write_selection(await _compute(here, work), arrow)


@router.post("/acquire", response_model=SelectionAnswer, responses=_RESPONSES, openapi_extra=_documented(AcquireBody))
async def acquire(request: Request, here: Here, caller: Selector) -> Response:
    """Candidates drawn by their scores, without replacement (stochastic batch acquisition)."""
    arrow = wants_arrow(request)
    body, columns = await _read(request, AcquireBody, ("scores",))
    scores = columns["scores"].to_numpy() if columns else np.array(body.scores, np.float64)
    _limit("scores", len(scores), here.settings.max_rows)

    def work() -> Selection:
        from curation.selectors.acquisition import StochasticAcquisition

        return StochasticAcquisition(kind=body.kind, beta=body.beta).select(scores, body.k, seed=(body.seed,))

    return write_selection(await _compute(here, work), arrow)


@router.post("/jest", response_model=SelectionAnswer, responses=_RESPONSES, openapi_extra=_documented(JestBody))
async def jest(request: Request, here: Here, caller: Selector) -> Response:
    """The part of a super-batch that is jointly most learnable (JEST)."""
    arrow = wants_arrow(request)
    names = ("learner_a", "learner_b", "reference_a", "reference_b")
    body, columns = await _read(request, JestBody, names)
    sides = {name: _matrix(name, columns.get(name, getattr(body, name)), here) for name in names}

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

        method = JEST(**body.model_dump(include={"loss", "filter_ratio", "chunks", "criterion", "joint"}))
        return method.select(pair("learner"), pair("reference"), generator=torch.Generator().manual_seed(body.seed))

    return write_selection(await _compute(here, work), arrow)


@router.post("/b3", response_model=PlanAnswer, responses=_RESPONSES, openapi_extra=_documented(B3Body))
async def b3(request: Request, here: Here, caller: Selector) -> Response:
    """Batches whose rows are hard negatives of each other (B3)."""
    arrow = wants_arrow(request)
    body, columns = await _read(request, B3Body, ("queries", "positives"))
    queries = _matrix("queries", columns.get("queries", body.queries), here)
    positives = _matrix("positives", columns.get("positives", body.positives), here)

    def work() -> BatchPlan:
        from curation.selectors.b3 import B3

        method = B3(**body.model_dump(exclude={"queries", "positives", "seed"}))
        return method.plan(queries, positives, seed=body.seed)

    return write_plan(await _compute(here, work), arrow)


B = TypeVar("B", bound=BaseModel)


async def _read(request: Request, model: type[B], arrays: tuple[str, ...]) -> tuple[B, dict[str, pa.Array]]:
    """The request, and its Arrow columns; with JSON the arrays are in the model instead."""
    arrow = is_arrow(request)
    body = await request.body()
    columns: dict[str, pa.Array] = {}
    if arrow:
        given, table = await asyncio.to_thread(read_tables, body)
        unknown = sorted((set(table.column_names) | set(given)) - set(model.model_fields))
        both = sorted(set(given) & set(arrays))
        if unknown or both or not set(table.column_names) <= set(arrays):
            allowed = [name for name in model.model_fields if name not in arrays]
            raise Refusal("bad-body", f"columns may be {', '.join(arrays)}; the request may have {', '.join(allowed)}")
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        if any(column.null_count for column in columns.values()):
            raise Refusal("bad-body", "a column holds nulls")
        given |= {name: [] for name in columns}
    else:
        given = await asyncio.to_thread(read_json, body)
    try:
        return await asyncio.to_thread(model.model_validate, given), columns
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False)) from error


def _matrix(name: str, values: Any, here: Parts) -> Any:
    """float32[N, D] of a column or a list of lists; None where there is none."""
    if values is None:
        return None
    if isinstance(values, pa.Array):
        if not pa.types.is_fixed_size_list(values.type) or not pa.types.is_floating(values.type.value_type):
            raise Refusal("bad-body", f"column {name} must be fixed-size lists of floats, not {values.type}")
        flat = values.flatten()
        if flat.null_count:
            raise Refusal("bad-body", f"column {name} holds nulls")
        matrix = np.array(flat.to_numpy(), np.float32).reshape(len(values), values.type.list_size)
    else:
        widths = {len(line) for line in values}
        if len(widths) > 1:
            raise Refusal("bad-body", f"{name}: rows have {min(widths)} to {max(widths)} columns: give each as many")
        with np.errstate(over="ignore"):  # found just below
            matrix = np.array(values, np.float32).reshape(len(values), *(widths or {0}))
    _limit(name, len(matrix), here.settings.max_pairs)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise Refusal("bad-body", f"{name}: row {int(np.argmin(finite))} is not finite as float32")
    return matrix


def _limit(name: str, given: int, most: int) -> None:
    if given > most:
        raise Refusal("too-large", f"{given} {name} are more than this server takes at once, {most}")


async def _compute(here: Parts, work: Callable[[], T]) -> T:
    """Run in a thread, few at once. A request that gives up does not free its thread, and so not its slot either."""

    async def held() -> T:
        async with here.select_slots:
            return await asyncio.to_thread(work)

    task = asyncio.create_task(held())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        return await asyncio.shield(task)
    except (ValueError, TypeError) as error:
        raise Refusal("bad-body", str(error)) from error


SCHEMAS: tuple[type[BaseModel], ...] = (ZipFitBody, AcquireBody, JestBody, B3Body)
