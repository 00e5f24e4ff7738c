"""Batch plans: invariants, and what comes back from disk."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import BatchPlan
from curation.errors import OutputError, SourceError


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    sizes = draw(st.lists(st.integers(1, 6), max_size=8))
    total = sum(sizes)
    indices = draw(st.permutations(range(total))) if total else []
    spread = draw(st.sampled_from([1, 1000, 2**50]))
    clusters = draw(st.none() | st.lists(st.integers(0, 5), min_size=total, max_size=total))
    width = draw(st.integers(0, 3))
    negatives = np.arange(total * width).reshape(total, width) - 1 if width else None
    rows = draw(st.none() | st.lists(st.integers(0, total - 1), max_size=8)) if total else None
    apart = None if rows is None else [(row, draw(st.integers(0, 9))) for row in sorted(rows)]
    datasets = draw(st.none() | st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    metadata = draw(st.dictionaries(st.text("abc é=", min_size=1), st.text(), max_size=3))
    return BatchPlan(
        indices=np.array(indices, np.int64) * spread,
        offsets=np.cumsum([0, *sizes]),
        clusters=None if clusters is None else np.array(clusters, np.int64),
        negatives=negatives,
        apart=None if apart is None else np.array(apart, np.int64).reshape(-1, 2),
        datasets=None if datasets is None else np.array(datasets, np.int64),
        metadata=metadata,
    )


def same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other))


@settings(deadline=None, max_examples=100)
@given(plan=plans())
def test_a_plan_comes_back_from_disk_as_it_was(plan: BatchPlan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.arrow"
        plan.save(path)
        assert [entry.name for entry in Path(folder).iterdir()] == ["batches.arrow"]
        back = BatchPlan.load(path)
    for name in ("indices", "offsets", "clusters", "negatives", "apart", "datasets"):
        assert same(getattr(back, name), getattr(plan, name)), name
    assert back.metadata == plan.metadata
    assert len(back) == len(plan) == len(plan.offsets) - 1


@settings(deadline=None, max_examples=100)
@given(plan=plans())
def test_batches_are_the_runs_between_offsets(plan: BatchPlan) -> None:
    batches = list(plan)
    assert len(batches) == len(plan)
    flat = np.concatenate(batches) if batches else np.empty(0, np.int64)
    assert np.array_equal(flat, plan.indices)
    for number, batch in enumerate(batches):
        assert np.array_equal(plan[number - len(plan)], batch)
        assert np.shares_memory(batch, plan.indices)
    for number in (len(plan), -len(plan) - 1):
        with pytest.raises(IndexError, match=f"batch {number} is out of range: the plan has {len(plan)}"):
            plan[number]


@settings(deadline=None, max_examples=100)
@given(total=st.integers(0, 40), size=st.integers(1, 12), drop_last=st.booleans())
def test_of_size(total: int, size: int, drop_last: bool) -> None:
    positions = np.random.default_rng(total).permutation(total)
    plan = BatchPlan.of_size(positions, size, drop_last=drop_last)
    expected = [positions[start : start + size].tolist() for start in range(0, total, size)]
    if drop_last:
        expected = [batch for batch in expected if len(batch) == size]
    assert [batch.tolist() for batch in plan] == expected


def test_of_size_needs_a_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        BatchPlan.of_size([1, 2], 0)


@pytest.mark.parametrize("offsets", [[], [0], [0, 2], [1, 3], [0, 2, 2, 3], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise from 0 to 3"):
        BatchPlan(indices=np.arange(3), offsets=np.array(offsets, np.int64))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"indices": np.array([0, 1, 1])}, ValueError, "index 1 appears more than once"),
        ({"indices": np.array([0, 1, -1])}, ValueError, "index -1 is negative"),
        ({"indices": np.array([0.0, 1.0, 2.0])}, TypeError, "indices must be integers"),
        ({"offsets": np.array([0.0, 3.0])}, TypeError, "offsets must be integers"),
        ({"clusters": np.array([0, 1])}, ValueError, "clusters has 2 rows, but indices has 3"),
        ({"clusters": np.array([0.5, 1, 2])}, TypeError, "clusters must be integers"),
        ({"negatives": np.zeros(3, int)}, ValueError, r"negatives must have shape \[3, h\], h ≥ 1, not \(3,\)"),
        ({"negatives": np.zeros((2, 4), int)}, ValueError, r"not \(2, 4\)"),
        ({"negatives": np.zeros((3, 0), int)}, ValueError, r"not \(3, 0\)"),
        ({"negatives": np.zeros((3, 2))}, TypeError, "negatives must be integers"),
        ({"apart": np.zeros(3, int)}, ValueError, r"apart must have shape \[K, 2\], not \(3,\)"),
        ({"apart": np.array([[3, 0]])}, ValueError, "apart must name rows of the plan, 0 to 2, rising"),
        ({"apart": np.array([[-1, 0]])}, ValueError, "apart must name rows of the plan"),
        ({"apart": np.array([[1, 0], [0, 0]])}, ValueError, "apart must name rows of the plan, 0 to 2, rising"),
        ({"apart": np.zeros((1, 2))}, TypeError, "apart must be integers"),
        ({"datasets": np.array([0, 1])}, ValueError, "datasets has 2 entries, but there are 1 batches"),
    ],
)
def test_what_a_plan_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BatchPlan(**({"indices": np.arange(3), "offsets": np.array([0, 3])} | changes))


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone.arrow: not a batch plan: .*No such file"):
        BatchPlan.load(tmp_path / "gone.arrow")
    plan = BatchPlan.of_size(range(100), 7)
    plan.save(tmp_path / "cut.arrow")
    content = (tmp_path / "cut.arrow").read_bytes()
    others = {
        "cut.arrow": content[: len(content) // 2],
        "empty.arrow": b"",
        "text.arrow": b"not arrow at all, nor anything like it",
    }
    for name, wrong in others.items():
        (tmp_path / name).write_bytes(wrong)
    for name, table in {
        "column.arrow": pa.table({"a": [1]}),
        "flat.arrow": pa.table({"indices": [1, 2]}),
        "texts.arrow": pa.table({"indices": [["a"], ["b"]]}),
        "twice.arrow": pa.table({"indices": [[1], [1]]}),
    }.items():
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        others[name] = b""
    for name in others:
        with pytest.raises(SourceError, match=f"{name}: not a batch plan"):
            BatchPlan.load(tmp_path / name)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BatchPlan.of_size(range(10), 5).save(tmp_path / "plan.arrow")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"plan.arrow: cannot be written: No space left"):
        BatchPlan.of_size(range(99), 5).save(tmp_path / "plan.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.arrow"]
    assert len(BatchPlan.load(tmp_path / "plan.arrow").indices) == 10


def test_large_plans_span_record_batches(tmp_path: Path) -> None:
    plan = BatchPlan.of_size(np.random.default_rng(0).permutation(200_003), 2)
    plan.save(tmp_path / "plan.arrow")
    back = BatchPlan.load(tmp_path / "plan.arrow")
    assert np.array_equal(back.indices, plan.indices)
    assert np.array_equal(back.offsets, plan.offsets)
