"""Selections of ``/v1/select``: from the bytes of a body to those of its answer, in a worker process.

JSON has everything in one object. With Arrow, arrays are columns (a matrix is a column of fixed-size lists), and the
rest is a JSON object in the schema's metadata, under ``request``.
"""

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from curation.pair import Pair
from curation.service.http.arrays import Matrix, check_count, matrix_of, read_arrays
from curation.service.http.bodies import write_plan, write_selection


class Limits(NamedTuple):
    """What one selection may be of; the settings of the same names say what."""

    max_body_bytes: int
    max_texts: int
    max_text_pairs: int
    max_text_bytes: int
    max_rows: int
    max_pairs: int


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


def zipfit(body: bytes, sent: bool, wanted: bool, limits: Limits) -> bytes:
    """The answer to a :class:`ZipFitBody`; ``sent`` and ``wanted`` say whether body and answer are Arrow.

    Raises:
        Refusal: the body does not fit, or is more than the limits allow.
    """
    asked, columns = read_arrays(body, sent, ZipFitBody, ("texts",), limits.max_body_bytes)
    texts = columns.get("texts", asked.texts)
    check_count("texts", len(texts), limits.max_texts)
    check_count("texts × targets", len(texts) * len(asked.targets), limits.max_text_pairs)
    targets = sum(map(len, asked.targets))
    check_count(
        "bytes to compress", len(asked.targets) * _text_bytes(texts) + len(texts) * targets, limits.max_text_bytes
    )
    from curation.selectors.zipfit import ZipFit

    method = ZipFit(**asked.model_dump(exclude={"texts", "k"}))
    return bytes(write_selection(method.select(texts, asked.k), wanted).body)


def acquire(body: bytes, sent: bool, wanted: bool, limits: Limits) -> bytes:
    """As :func:`zipfit`, of an :class:`AcquireBody`."""
    asked, columns = read_arrays(body, sent, AcquireBody, ("scores",), limits.max_body_bytes)
    scores = columns["scores"].to_numpy() if columns else np.array(asked.scores, np.float64)
    check_count("scores", len(scores), limits.max_rows)
    from curation.selectors.acquisition import StochasticAcquisition

    method = StochasticAcquisition(kind=asked.kind, beta=asked.beta, shift=asked.shift)
    return bytes(write_selection(method.select(scores, asked.k, seed=(asked.seed,)), wanted).body)


def jest(body: bytes, sent: bool, wanted: bool, limits: Limits) -> bytes:
    """As :func:`zipfit`, of a :class:`JestBody`."""
    names = ("learner_a", "learner_b", "reference_a", "reference_b")
    asked, columns = read_arrays(body, sent, JestBody, names, limits.max_body_bytes)
    sides = {name: _matrix(name, columns.get(name, getattr(asked, name)), limits) for name in names}

    import torch

    from curation.selectors.jest import JEST

    def pair(model: str) -> Pair | None:
        a, b = sides[f"{model}_a"], sides[f"{model}_b"]
        if a is None or b is None:
            return None
        scale, bias = getattr(asked, f"{model}_scale"), getattr(asked, f"{model}_bias")
        return Pair(torch.from_numpy(a), torch.from_numpy(b), scale, bias)

    parameters = {"loss", "filter_ratio", "chunks", "criterion", "joint", "own_positive"}
    method = JEST(**asked.model_dump(include=parameters))
    generator = torch.Generator().manual_seed(asked.seed)
    return bytes(write_selection(method.select(pair("learner"), pair("reference"), generator=generator), wanted).body)


def b3(body: bytes, sent: bool, wanted: bool, limits: Limits) -> bytes:
    """As :func:`zipfit`, of a :class:`B3Body`; the answer is a plan."""
    asked, columns = read_arrays(body, sent, B3Body, ("queries", "positives"), limits.max_body_bytes)
    queries = _matrix("queries", columns.get("queries", asked.queries), limits)
    positives = _matrix("positives", columns.get("positives", asked.positives), limits)
    from curation.selectors.b3 import B3

    method = B3(**asked.model_dump(exclude={"queries", "positives", "seed"}))
    return bytes(write_plan(method.plan(queries, positives, seed=asked.seed), wanted).body)


def _matrix(name: str, values: Any, limits: Limits) -> Any:
    matrix = matrix_of(name, values)
    if matrix is not None:
        check_count(name, len(matrix), limits.max_pairs)
    return matrix


def _text_bytes(texts: pa.Array | list[str]) -> int:
    if isinstance(texts, pa.Array):
        return pc.sum(pc.binary_length(texts)).as_py() or 0
    return sum(map(len, texts))
