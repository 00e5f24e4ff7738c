"""Step requests whose head is known read as they do without, and nothing else passes for one."""

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.service.client.requests import Requests
from curation.service.errors import Refusal
from curation.service.http import bodies, step_heads
from curation.service.http.step_heads import StepHeads
from curation.service.session.session import StepRequest

LOSSES = np.arange(8, dtype=np.float32)


def body(step: int | None, rank: int, *lengths: int, generation: int | None = None, wait: float = 0) -> bytes:
    reports = [(number, LOSSES[:length] + number) for number, length in enumerate(lengths)]
    request = Requests(wait).step("x", step=step, rank=rank, reports=reports, generation=generation)
    assert isinstance(request.content, bytes)
    return request.content


def read(content: bytes, max_reports: int = 64) -> StepRequest:
    return bodies.read_step(content, True, 1 << 20, max_reports)


def plain(request: StepRequest) -> Any:
    reports = [(report.rank, report.step, report.losses.tolist()) for report in request.reports]
    return (request.rank, request.step, reports, request.generation, request.wait)


@pytest.fixture(autouse=True)
def heads(monkeypatch: pytest.MonkeyPatch) -> StepHeads:
    heads = StepHeads()
    monkeypatch.setattr(bodies, "_heads", heads)
    return heads


@pytest.mark.parametrize("lengths", [(), (8,), (8, 0, 3), (3, 8)])
@pytest.mark.parametrize("named", [{}, {"generation": 3}, {"wait": 1.5}, {"wait": 2, "generation": 0}])
def test_a_known_head_reads_as_any_other(heads: StepHeads, lengths: tuple[int, ...], named: dict[str, Any]) -> None:
    read(body(50, 3, *lengths, **named))
    for step, rank in ((50, 3), (99, 0), (12, 9)):
        content = body(step, rank, *lengths, **named)
        known = heads.read(content, 64)
        assert known is not None
        heads._known.clear()
        assert plain(known) == plain(read(content))
    assert heads.read(body(100, 3, *lengths, **named), 64) is None, "another length"


def test_a_request_that_only_reports_is_known() -> None:
    assert (
        plain(read(body(None, 2, 8))) == plain(read(body(None, 2, 8))) == (2, None, [(2, 0, LOSSES.tolist())], None, 0)
    )


def test_nothing_in_a_known_body_goes_unchecked(heads: StepHeads) -> None:
    """Each number of a body, changed, is refused or read as it is by a reader that knows no head."""
    right = body(50, 3, 8, 5)
    for at in range(0, len(right) - 4, 4):
        for value in (0, 1, 9, 0x30303930, 0x39393939, 0x7FFFFFFF, 0xFFFFFFFF):
            changed = bytearray(right)
            struct.pack_into("<I", changed, at, value)
            answers: list[Any] = []
            for first in (None, right):
                heads._known.clear()
                if first:
                    read(first)
                try:
                    answers.append(plain(read(bytes(changed))))
                except Refusal as refusal:
                    answers.append(refusal.detail)
            assert repr(answers[0]) == repr(answers[1]), (at, value)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-8], lambda b: b + bytes(8), lambda b: b[:40]])
def test_a_body_of_another_length_is_not_known(heads: StepHeads, change: Any) -> None:
    read(body(50, 3, 8))
    assert heads.read(change(body(50, 3, 8)), 64) is None


def test_the_limit_of_reports_holds(heads: StepHeads) -> None:
    read(body(50, 3, 1, 1, 1))
    with pytest.raises(Refusal, match="3 rows"):
        read(body(50, 3, 1, 1, 1), 2)


def table(metadata: str = "", legacy: bool = False, **columns: Any) -> bytes:
    named = {"rank": "1", "step": "2", "other": metadata}
    sink, batch = pa.BufferOutputStream(), pa.record_batch(columns, metadata=named)
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(use_legacy_format=legacy)) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "content",
    [
        table(step=pa.array([0], pa.int32()), losses=pa.array([[1.0]], pa.list_(pa.float32()))),
        table(step=pa.array([0]), losses=pa.array([[1.0]], pa.list_(pa.float64()))),
        table(step=pa.array([0]), losses=pa.array([[1.0, None]], pa.list_(pa.float32()))),
        table(losses=pa.array([[1.0]], pa.list_(pa.float32())), step=pa.array([0])),
        table(step=pa.array([0]), losses=pa.array([[1.0]], pa.list_(pa.float32())), other=pa.array([0])),
        table(step=pa.array([0]), losses=pa.array([[1.0]], pa.large_list(pa.float32()))),
        table("long" * 2000, step=pa.array([0]), losses=pa.array([[1.0]], pa.list_(pa.float32()))),
        table(legacy=True, step=pa.array([0]), losses=pa.array([[1.0]], pa.list_(pa.float32()))),
        body(50, -1),
        body(50, 1)[:-8],
    ],
)
def test_other_layouts_are_not_kept(heads: StepHeads, content: bytes) -> None:
    assert repr(plain(read(content))) == repr(plain(read(content)))
    assert not heads._known


def test_what_is_kept_is_bounded(heads: StepHeads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_heads, "_MAX_HEADS", 4)
    for length in range(1, 9):
        read(body(50, 3, length))
        assert 1 <= len(heads._known) <= 4
