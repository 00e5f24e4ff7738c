"""Choices: what each rank sends of a super-batch, and which rows are chosen from it, as both are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from curation.service.arrow import write_table

SIDES = ("learner_a", "learner_b", "reference_a", "reference_b")
FACTORS = ("learner_scale", "learner_bias", "reference_scale", "reference_bias")
_CHOICE = pa.schema([("positions", pa.int32()), ("scores", pa.float32())])


@dataclass(frozen=True)
class RankPart:
    """What one rank sent of its n rows.

    Args:
        sides: float32[n, D] by the names in ``SIDES``; D may differ between learner and reference.
        scores: float64[n], each row's own logit, in place of embeddings (``joint`` false).
        factors: the losses' scale and bias by the names in ``FACTORS``.
    """

    sides: Mapping[str, npt.NDArray[np.float32]]
    scores: npt.NDArray[np.float64] | None
    factors: Mapping[str, float]

    @property
    def kind(self) -> Any:
        """What must be the same on all ranks: widths, kind of part, factors."""
        return {name: matrix.shape[1] for name, matrix in self.sides.items()}, self.scores is None, dict(self.factors)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that tell whether another report is the same."""
        hashed = xxhash.xxh3_128(repr(self.kind).encode())
        for name in sorted(self.sides):
            hashed.update(np.ascontiguousarray(self.sides[name]).data)
        if self.scores is not None:
            hashed.update(np.ascontiguousarray(self.scores).data)
        return hashed.digest()

    def pack(self) -> bytes:
        """An Arrow IPC stream of it."""
        columns: dict[str, pa.Array] = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
            for name, matrix in self.sides.items()
        }
        if self.scores is not None:
            columns["scores"] = pa.array(self.scores)
        factors = {name: value.hex() for name, value in self.factors.items()}
        return write_table(pa.table(columns).replace_schema_metadata(factors))

    @classmethod
    def unpack(cls, data: bytes) -> "RankPart":
        """The inverse of :meth:`pack`."""
        rows = pa.ipc.open_stream(data).read_all().combine_chunks()
        columns = {name: rows[name].chunk(0) for name in rows.column_names}
        sides = {
            name: column.flatten().to_numpy().reshape(-1, column.type.list_size)
            for name, column in columns.items()
            if name != "scores"
        }
        scores = columns["scores"].to_numpy() if "scores" in columns else None
        factors = {name.decode(): float.fromhex(value.decode()) for name, value in rows.schema.metadata.items()}
        return cls(sides, scores, factors)


class Choice(NamedTuple):
    """A choice that stands: ``positions`` int32[b] in the super-batch, in pick order; ``scores`` float32[b], the logits
    (nats) they were drawn at; ``digests``: of what each rank sent."""

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    digests: Sequence[bytes]

    def pack(self) -> bytes:
        """An Arrow IPC stream of it."""
        table = pa.table({"positions": self.positions, "scores": self.scores})
        return write_table(table.replace_schema_metadata({"digests": b"".join(self.digests).hex()}))

    @classmethod
    def unpack(cls, data: bytes) -> "Choice":
        """The inverse of :meth:`pack`; raises ``ValueError`` or ``KeyError`` where it is not one."""
        table = pa.ipc.open_stream(data).read_all()
        if not table.schema.equals(_CHOICE) or table["positions"].null_count or table["scores"].null_count:
            raise ValueError("a choice has the columns positions int32 and scores float32, without nulls")
        digests = bytes.fromhex(table.schema.metadata[b"digests"].decode())
        return cls(
            table["positions"].to_numpy(),
            table["scores"].to_numpy(),
            [digests[start : start + 16] for start in range(0, len(digests), 16)],
        )
