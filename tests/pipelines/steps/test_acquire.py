"""Draws by scores that may be negative, and sizes that exceed what is there: what a run says, and when."""

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import Dataset, StochasticAcquisition
from curation.errors import BadRowError, RecipeError, StepError
from curation.pipelines import Acquire, Align, Dedup, FileSource, Score, Step, reselect, run
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.acquire import Draw
from curation.pipelines.steps.base import bad_positions
from curation.pipelines.steps.check import check_columns
from curation.selectors.acquisition import count_of
from curation.sources import open_source

pytestmark = pytest.mark.usefixtures("ray_session")

BLOB = 37
WORDS = ["merge", "sort", "list", "parse", "json", "open", "file", "token", "yield", "value"]


def texts() -> pa.Table:
    """60 texts, of which one repeats the first and one is random bytes in base64."""
    rng = np.random.default_rng(3)
    rows = [f"def f{number}(): return " + " + ".join(rng.choice(WORDS, 30)) for number in range(60)]
    rows[5] = rows[0]
    rows[BLOB] = base64.b64encode(rng.bytes(2_000)).decode()
    return pa.table({"text": rows})


def steps(**acquire: Any) -> list[Step]:
    """The steps of the README's recipe."""
    return [
        Dedup(),
        Align(targets=["def parse(token): return json.open(file).value, " * 3]),
        Acquire(kind="power", **{"fraction": 0.5, **acquire}),
    ]


def scores_of(out: Path, name: str = "alignment") -> np.ndarray:
    with pa.memory_map(str(out / "decisions.arrow")) as file:
        return pa.ipc.open_file(file).read_all()[name].to_numpy()


def kept(out: Path) -> list[int]:
    return datasets.load_from_disk(str(out))["_index"][:]


@pytest.mark.parametrize("on_bad_row", ["stop", "quarantine"])
def test_a_shift_draws_from_texts_that_do_not_compress(on_bad_row: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"source": texts(), "on_bad_row": on_bad_row, "block_rows": 16}
    manifest = run(steps(shift="lowest"), out=out, **options)
    scores = scores_of(out)
    assert scores[BLOB] == np.nanmin(scores) < 0
    assert (manifest.bad_rows, manifest.rows_out) == (0, 30)
    assert manifest.steps[2].details["shift"] == -scores[BLOB]
    left = np.flatnonzero(~np.isnan(scores))
    method = StochasticAcquisition(shift="lowest")
    expected = left[method.select(scores[left], 30, seed=(0, 3)).indices]
    assert kept(out) == sorted(expected.tolist())
    Dataset(out).verify()


def test_power_of_an_alignment_without_a_shift_is_refused_before_the_first_task(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"step 3 \(acquire\) draws by power.* alignment may be negative.*`shift: lowest`"
    ):
        run(steps(), source=texts(), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    cut = Acquire(kind="threshold", threshold=0)
    check_columns([*steps()[:2], cut, steps()[2]], texts().schema, stops=True)
    with pytest.raises(RecipeError, match="step 4"):
        check_columns(
            [*steps()[:2], cut.model_copy(update={"threshold": -1.0}), steps()[2]], texts().schema, stops=True
        )


def test_a_row_whose_score_cannot_be_drawn_by_is_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pq.write_table(texts(), tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    manifest = run(steps(), source=source, out=out, on_bad_row="quarantine", block_rows=16)
    assert (manifest.bad_rows, manifest.rows_out) == (1, 29)
    (aside,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert (aside["index"], aside["row"]) == (BLOB, BLOB)
    assert "its alignment is -0.0" in aside["reason"]
    assert "step 3 (acquire) draws by power, which needs 0 or more" in aside["reason"]
    dataset = Dataset(out)
    dataset.verify()
    assert dataset.decisions.counts()["bad row"] == 1
    assert "which needs 0 or more" in dataset.explain(BLOB).sentence
    again = reselect(out, tmp_path / "again", shift="lowest", fraction=0.2)
    assert (again.bad_rows, again.rows_out) == (0, 12)
    softmax = reselect(tmp_path / "again", tmp_path / "softmax", kind="softmax")
    assert softmax.recipe["steps"][2]["shift"] == 0


@pytest.mark.parametrize("per", [None, "kind"])
def test_a_score_below_the_shift_stops_the_run_by_file_and_row(per: str | None, tmp_path: Path) -> None:
    lines = [{"value": value, "kind": str(number % 2)} for number, value in enumerate([1.5, -0.5, 2.0, -0.75, 0.0])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[2:]))
    options: dict[str, Any] = {"source": str(tmp_path / "*.jsonl"), "block_rows": 2}
    cut: dict[str, Any] = {"kind": "power", "per": per, "count": 1}
    with pytest.raises(BadRowError, match=r"a\.jsonl, row 1: its score is -0\.5, .*needs 0 or more.*`shift: lowest`"):
        run([Score(column="value"), Acquire(**cut)], out=tmp_path / "first", **options)
    wanted = [Score(column="value"), Acquire(shift=0.5, **cut)]
    with pytest.raises(BadRowError, match=r"b\.jsonl, row 1: its score is -0\.75, .*needs -0\.5 or more"):
        run(wanted, out=tmp_path / "second", **options)
    manifest = run(wanted, out=tmp_path / "third", on_bad_row="quarantine", **options)
    assert (manifest.bad_rows, manifest.steps[1].dropped["bad row"]) == (1, 1)
    assert manifest.rows_out == (1 if per is None else 2)
    Dataset(tmp_path / "third").verify()


ROWS = pa.table({"text": ["a", "a", "b", "c"], "value": [1.0, 2.0, 3.0, 4.0]})


def test_more_rows_than_the_source_has_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    wanted: list[Step] = [Dedup(), Score(column="value"), Acquire(count=5)]
    with pytest.raises(StepError, match=r"step 3 \(acquire\) asks for 5 rows, but only 4 are in the source"):
        run(wanted, source=ROWS, out=tmp_path / "out")
    assert not list((tmp_path / "out.partial").glob("0*"))
    with pytest.raises(StepError, match=r"step 3 \(acquire\) asks for 4 rows, but only 3 are left"):
        run([*wanted[:2], Acquire(count=4)], source=ROWS, out=tmp_path / "less")
    manifest = run([*wanted[:2], Acquire(count=5, per="text")], source=ROWS, out=tmp_path / "groups")
    assert manifest.rows_out == 3


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"kind": "softmax", "shift": 1.0}, "goes with kind: power"),
        ({"kind": "top-k", "shift": "lowest"}, "goes with kind: power"),
        ({"kind": "power", "shift": float("inf")}, "finite"),
        ({"kind": "power", "shift": "least"}, "lowest"),
    ],
)
def test_bad_shifts(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Acquire(count=1, **parameters)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e300]), min_size=1, max_size=12),
    out=st.sets(st.integers(0, 11)),
    shift=st.sampled_from([0.0, 1.0, "lowest"]),
    kind=st.sampled_from(["power", "softmax", "soft-rank"]),
    seed=st.integers(0, 9),
)
def test_the_task_draws_what_the_method_draws_of_the_rows_it_can_use(
    values: list[float], out: set[int], shift: Any, kind: Any, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, shift = tmp_path_factory.mktemp("task"), shift if kind == "power" else 0.0
    pq.write_table(pa.table({"value": values}), folder / "rows.parquet")
    source = open_source(FileSource(format="parquet", path=str(folder / "rows.parquet")))
    blocks, stages = source.blocks(4), [Stage(folder / name) for name in ("scores", "acquire")]
    reason = np.where(np.isin(np.arange(len(values)), list(out)), 2, 0).astype(np.int8)
    save(folder / "reason.npy", reason)
    for block in blocks:
        save(stages[0].piece(block.number), np.array(values)[block.start : block.start + block.rows])
    step = Acquire(kind=kind, shift=shift, fraction=0.5)
    draw = Draw(step, 2, seed, stages[1], "value", stages[0], folder / "reason.npy", 3, blocks, source, True)

    left = np.flatnonzero(reason == 0)
    method = StochasticAcquisition(kind=kind, shift=shift)
    refused = method.refused(np.array(values)[left])
    usable = left[~refused]
    if not len(usable):
        with pytest.raises(StepError, match="keeps none of 0 rows"):
            draw()
        return
    draw()
    picks = method.select(np.array(values)[usable], count_of(0.5, len(usable)), seed=(seed, 2)).indices
    after = np.load(stages[1].folder / "reason.npy")
    assert np.load(stages[1].folder / "pick.npy").tolist() == usable[picks].tolist()
    assert np.flatnonzero(after == 0).tolist() == sorted(usable[picks].tolist())
    assert np.flatnonzero(after == 1).tolist() == left[refused].tolist() == bad_positions(stages[1]).tolist()
    assert (after[list(out & set(range(len(values))))] == 2).all()
    assert stages[1].done["bad"] == refused.sum()  # type: ignore[index]
