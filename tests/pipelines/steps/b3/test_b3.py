"""Recipes with `embed` and `b3`: what comes out equals B3 in memory, whoever did the work and whatever died."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.dataset import Dataset
from curation.dataset.batches import look_at_batches
from curation.dataset.manifest import Manifest
from curation.errors import BadRowError, CurationError, RecipeError, SourceError, StepError
from curation.pipelines import Embed
from curation.pipelines.job import run
from curation.plan import BatchPlan
from curation.progress import Silent
from curation.recipe import Recipe, load_recipe
from curation.selectors.b3 import B3, text_ids

from ...engine.test_crash import finish, kill_a_worker, start_driver, wait_for
from ...functions import NAME as FUNCTIONS

pytestmark = pytest.mark.usefixtures("ray_session")

ROWS, WIDTH = 300, 16


def vectors(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Pairs around common centres, as an embedding has them."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, WIDTH))[rng.integers(0, 12, rows)]
    made = [centres + 0.7 * rng.normal(size=(rows, WIDTH)) for _ in range(2)]
    return made[0].astype(np.float32), made[1].astype(np.float32)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two Parquet files: query, positive, page, part, two columns of vectors, and one that the shuffle has, too."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    left, right = vectors()
    table = pa.table(
        {
            "query": [f"what is {number % 280}" for number in range(ROWS)],
            "positive": [f"it is {number}" for number in range(ROWS)],
            "page": [f"page {number % 140}" for number in range(ROWS)],
            "part": [number % 3 for number in range(ROWS)],
            "_place": range(ROWS),
            "q": pa.FixedSizeListArray.from_arrays(pa.array(left.reshape(-1)), WIDTH),
            "p": pa.array(right.tolist(), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table.slice(0, 170), folder / "a.parquet")
    pq.write_table(table.slice(170), folder / "b.parquet")
    return folder


def spec(folder: Path, *steps: dict[str, Any], **others: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "source": {"format": "parquet", "path": str(folder / "*.parquet")},
            "steps": list(steps),
            "output": {"rows_per_shard": 70},
            "block_rows": 64,
            **others,
        }
    )


MINE: dict[str, Any] = {
    **{"step": "b3", "queries": "q", "positives": "p", "batch_size": 32, "cluster_size": 8, "ranks": [3, 15]},
    **{"duplicates": "ignore", "part_rows": 110},
}


def plan_of(out: Path) -> list[list[int]]:
    """The batches, as positions in the source."""
    index = np.array(datasets.load_from_disk(str(out))["_index"][:])
    return [index[batch].tolist() for batch in BatchPlan.load(out / "batches.arrow")]


def shards(out: Path) -> dict[str, str]:
    return {name: file.sha256 for name, file in Manifest.load(out).files.items() if name.endswith(".arrow")}


def test_equals_memory_on_any_number_of_workers(pairs: Path, tmp_path: Path) -> None:
    left, right = vectors()
    for workers in (1, 2):
        run(spec(pairs, MINE, seed=5), tmp_path / str(workers), workers=workers)
    expected = B3(batch_size=32, cluster_size=8, ranks=(3, 15)).plan(left, right, seed=5)
    assert plan_of(tmp_path / "1") == [batch.tolist() for batch in expected]
    assert shards(tmp_path / "1") == shards(tmp_path / "2")
    Dataset(tmp_path / "1").verify()

    rows = datasets.load_from_disk(str(tmp_path / "1"))
    assert sorted(rows["_index"][:]) == list(range(ROWS))
    read = [batch["_index"] for batch in rows.iter(batch_size=32)]
    assert read == [batch.tolist() for batch in expected]
    assert rows["query"][:] == [f"what is {index % 280}" for index in rows["_index"][:]]

    manifest = Manifest.load(tmp_path / "1")
    # Shards hold whole batches: 64 rows and not 70.
    assert [file.rows for name, file in manifest.files.items() if name.startswith("data-")] == [64, 64, 64, 64, 44]
    look = look_at_batches(Dataset(tmp_path / "1"), batches=2, rows=3)
    assert look is not None
    assert [shown.number for shown in look.shown] == [0, 9]
    assert [text["query"] for text in look.shown[0].texts] == [f"what is {index % 280}" for index in expected[0][:3]]
    page = (tmp_path / "1" / "report.html").read_text()
    assert "Against random batches of the same sizes" in page

    details = manifest.steps[0].details
    assert details["quality"]["plan"]["inside_edges"] > 0.3
    assert details["exact"] == "true"
    assert details["cluster_sizes"] == {"8": 37, "4": 1}
    assert details["quality"]["plan"]["window_neighbours"] > 1.5 * details["quality"]["random"]["window_neighbours"]


def test_every_option_equals_memory(pairs: Path, tmp_path: Path) -> None:
    left, right = vectors()
    options: dict[str, Any] = {"edges": "either", "repulsion": 0.5, "negatives": 2, "last": "drop"}
    options |= {"similarity_ceiling": 14.0, "positive_margin": 1.2}
    step = {**MINE, **options, "duplicates": "apart", "groups": "page"}
    manifest = run(spec(pairs, step), tmp_path / "out")
    b3 = B3(batch_size=32, cluster_size=8, ranks=(3, 15), **options)
    page = text_ids([f"page {number % 140}" for number in range(ROWS)])
    expected = b3.plan(left, right, groups=page)
    assert plan_of(tmp_path / "out") == [batch.tolist() for batch in expected]
    plan = BatchPlan.load(tmp_path / "out" / "batches.arrow")
    row_of = {int(index): row for row, index in enumerate(expected.indices)}
    assert plan.negatives is not None
    assert expected.negatives is not None
    assert plan.negatives.tolist() == [[row_of.get(j, -1) for j in row] for row in expected.negatives.tolist()]
    assert manifest.steps[0].dropped == {"1. b3: last, short batch": ROWS % 32}
    Dataset(tmp_path / "out").verify()


def test_data_sets_are_kept_apart_and_have_ranks_of_their_own(pairs: Path, tmp_path: Path) -> None:
    left, right = vectors()
    ranks: dict[int, Any] = {0: (3, 15), 1: (1, 9), 2: (0.0, 0.2)}
    step = {**MINE, "datasets": "part", "labels": "page", "negatives": 2, "ranks": {**ranks, "another": [0, 5]}}
    manifest = run(spec(pairs, step), tmp_path / "out")
    datasets, labels = np.arange(ROWS) % 3, np.arange(ROWS) % 140
    b3 = B3(batch_size=32, cluster_size=8, ranks=ranks, negatives=2)
    expected = b3.plan(left, right, datasets=datasets, labels=labels)
    assert plan_of(tmp_path / "out") == [batch.tolist() for batch in expected]
    plan = BatchPlan.load(tmp_path / "out" / "batches.arrow")
    assert plan.negatives is not None
    assert expected.negatives is not None
    np.testing.assert_array_equal(np.append(expected.indices, -1)[plan.negatives], expected.negatives)
    assert manifest.steps[0].details["exact"] == "true"


def test_cells_bound_the_graph(pairs: Path, tmp_path: Path) -> None:
    manifest = run(spec(pairs, {**MINE, "cell_rows": 120, "groups": "page", "repulsion": 0.5}), tmp_path / "out")
    batches = plan_of(tmp_path / "out")
    assert sorted(index for batch in batches for index in batch) == list(range(ROWS))
    assert manifest.steps[0].details["cells"] == 3
    assert all(len({index % 140 for index in batch}) == len(batch) for batch in batches)
    quality = manifest.steps[0].details["quality"]
    assert quality["plan"]["window_neighbours"] > 1.3 * quality["random"]["window_neighbours"]
    Dataset(tmp_path / "out").verify()


def test_equal_texts_never_share_a_batch(pairs: Path, tmp_path: Path) -> None:
    embed = {"step": "embed", "teacher": "tfidf", "dimensions": 8}
    mine = {"step": "b3", "batch_size": 16, "cluster_size": 4, "ranks": [2, 12]}
    manifest = run(spec(pairs, embed, mine), tmp_path / "out")
    assert [step.rows_out for step in manifest.steps] == [ROWS, ROWS]
    batches = plan_of(tmp_path / "out")
    assert sorted(index for batch in batches for index in batch) == list(range(ROWS))
    assert all(len({index % 280 for index in batch}) == len(batch) for batch in batches)


@pytest.mark.parametrize("surplus", ["drop", "allow"])
def test_more_rows_of_a_group_than_batches(surplus: Any, pairs: Path, tmp_path: Path) -> None:
    manifest = run(spec(pairs, {**MINE, "groups": "part", "surplus": surplus}), tmp_path / "out")
    left, right = vectors()
    method = B3(batch_size=32, cluster_size=8, ranks=(3, 15), surplus=surplus)
    expected = method.plan(left, right, groups=np.arange(ROWS) % 3)
    assert plan_of(tmp_path / "out") == [batch.tolist() for batch in expected]
    # Ten batches hold one row of each of three groups.
    dropped = {"1. b3: surplus, cannot be kept apart": ROWS - 30} if surplus == "drop" else {}
    assert manifest.steps[0].dropped == dropped
    assert manifest.steps[0].details["rows_together"] == (0 if surplus == "drop" else ROWS)
    Dataset(tmp_path / "out").verify()


@pytest.mark.parametrize("duplicates", ["apart", "by-column"])
def test_a_query_that_is_a_positive_elsewhere(duplicates: str, tmp_path: Path) -> None:
    left, right = vectors(120)
    names = [f"text {number}" for number in range(121)]
    table = pa.table({"query": names[:120], "positive": names[1:], "q": left.tolist(), "p": right.tolist()})
    (tmp_path / "pairs").mkdir()
    pq.write_table(table, tmp_path / "pairs" / "a.parquet")
    embed = {"step": "embed", "teacher": "tfidf", "dimensions": 4}
    mine = {"step": "b3", "batch_size": 16, "cluster_size": 8, "ranks": [0, 20], "duplicates": duplicates}
    run(spec(tmp_path / "pairs", embed, mine), tmp_path / "out")
    met = sum(row + 1 in batch for batch in plan_of(tmp_path / "out") for row in batch)
    assert (met == 0) == (duplicates == "apart")


def slow_teacher(texts: list[str]) -> list[list[float]]:
    """Slow enough to be killed in the middle."""
    time.sleep(0.2)
    return np.stack([np.random.default_rng(len(text)).normal(size=8) + [len(text) % 5] * 8 for text in texts]).tolist()


@pytest.mark.slow
def test_killed_workers_and_killed_drivers(pairs: Path, tmp_path: Path) -> None:
    embed = {"step": "embed", "teacher": "tests.pipelines.steps.b3.test_b3:slow_teacher"}
    mine = {"step": "b3", "batch_size": 16, "cluster_size": 4, "ranks": [2, 12], "part_rows": 150}
    recipe = spec(pairs, {"step": "dedup", "column": "query"}, embed, mine, block_rows=60)
    run(recipe, tmp_path / "undisturbed")
    out, partial = tmp_path / "out", tmp_path / "out.partial"

    driver = start_driver(recipe, out)
    wait_for(partial, "02-embed-*/[0-9]*.jsonl", driver)
    kill_a_worker("embed")
    wait_for(partial, "03-b3-search-*/[0-9]*.arrow", driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver = start_driver(recipe, out)
    wait_for(partial, "04-scatter-*/[0-9]*.arrow", driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    finish(start_driver(recipe, out), out)
    assert shards(out) == shards(tmp_path / "undisturbed")
    Dataset(out).verify()


EMBED = {"step": "embed", "columns": ["query"], "teacher": f"{FUNCTIONS}:lengths"}
BAD: dict[str, tuple[list[dict[str, Any]], type[CurationError], str]] = {
    "text without embed": ([{**MINE, "queries": "query"}], RecipeError, "'query', which is text .* `embed` step"),
    "not vectors": ([{**MINE, "queries": "part"}], SourceError, "'part' as vectors .* int64"),
    "no such column": ([{**MINE, "positives": "nothing"}], SourceError, "'nothing', but the source has: query"),
    "groups of vectors": ([{**MINE, "groups": "p"}], SourceError, "'p' as text or whole numbers"),
    "other widths": (
        [EMBED, {**MINE, "queries": "query"}],
        StepError,
        "'query' have 1 numbers, those of 'p' have 16",
    ),
    "no full batch": (
        [{**MINE, "batch_size": 512, "last": "drop"}],
        StepError,
        "keeps none of 300 rows: they do not fill a batch of 512",
    ),
    "a data set without ranks": (
        [{**MINE, "datasets": "part", "ranks": {0: [3, 15], 2: [1, 9]}}],
        StepError,
        "`ranks` give no pair to '1' of column 'part'",
    ),
    "cannot be kept apart": (
        [{**MINE, "groups": "part", "surplus": "error"}],
        StepError,
        "100 rows must be kept apart .* there are 10 batches",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes(case: str, pairs: Path, tmp_path: Path) -> None:
    steps, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        run(spec(pairs, *steps), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if case == "cannot be kept apart":
        # Before the search, which is the dear part.
        assert not list((tmp_path / "out.partial").glob("*b3-search/*"))


def test_rows_that_cannot_be_kept_apart_are_found_before_a_search_goes_on(pairs: Path, tmp_path: Path) -> None:
    class Stops(Silent):
        def begin(self, stage: str, rows: int, done: int = 0) -> None:
            if stage.endswith("search"):
                raise InterruptedError(stage)

    mine = {**MINE, "groups": "part"}
    with pytest.raises(InterruptedError):
        run(spec(pairs, mine), tmp_path / "out", progress=Stops())
    with pytest.raises(StepError, match="100 rows must be kept apart"):
        run(spec(pairs, {**mine, "surplus": "error"}), tmp_path / "out", progress=Stops())


EMBEDS: dict[str, Any] = {"step": "embed"}
B3_STEP: dict[str, Any] = {"step": "b3"}
BAD_ORDERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "after b3": ([EMBEDS, B3_STEP, {"step": "dedup"}], r"step 3 \(dedup\) stands after b3, which groups"),
    "embed for nothing": ([EMBEDS, {"step": "dedup"}], "embeds 'query', which no later `b3` step uses"),
    "embedded twice": ([EMBEDS, EMBEDS, B3_STEP], "embeds 'query', which step 1 has done"),
    "sizes": ([EMBEDS, {**B3_STEP, "batch_size": 30, "cluster_size": 8}], "multiple of `cluster_size`, not 30 with 8"),
    "ranks": ([EMBEDS, {**B3_STEP, "ranks": [9, 9]}], "0 ≤ first < end, not"),
    "ranks of data sets": ([EMBEDS, {**B3_STEP, "ranks": {"a": [1, 9]}}], "by data set need `datasets`"),
    "margin of a distance": ([EMBEDS, {**B3_STEP, "metric": "l2", "positive_margin": 0.9}], "needs metric: ip"),
    "prompts": ([{**EMBEDS, "prompts": {"text": "x"}}, B3_STEP], "`prompts` names text, which `columns` does not"),
    "teacher": ([{**EMBEDS, "teacher": "word2vec"}, B3_STEP], "teacher"),
}


@pytest.mark.parametrize("case", BAD_ORDERS)
def test_bad_orders(case: str, tmp_path: Path) -> None:
    steps, message = BAD_ORDERS[case]
    with pytest.raises(ValueError, match=message):
        spec(tmp_path, *steps)


def test_a_model_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = "source: {format: stdlib, content: pair}\nsteps:\n  - {step: embed, teacher: 'sentence-transformers:%s'}\n"
    for name, expected in (("model", f"{tmp_path.resolve()}/model"), ("org/model", "org/model")):
        (tmp_path / "recipe.yaml").write_text(text % name + "  - {step: b3}\n")
        step = load_recipe(tmp_path / "recipe.yaml").steps[0]
        assert isinstance(step, Embed)
        assert step.teacher == f"sentence-transformers:{expected}"


@pytest.mark.parametrize(("value", "why"), [(None, "null"), (0.0, "zero"), (float("nan"), "not finite")])
def test_bad_vectors(value: float | None, why: str, pairs: Path, tmp_path: Path) -> None:
    table = pq.read_table(pairs / "a.parquet")
    rows = table["p"].to_pylist()
    rows[7] = None if value is None else [value] * WIDTH
    place = table.schema.get_field_index("p")
    pq.write_table(table.set_column(place, "p", pa.array(rows, table["p"].type)), pairs / "a.parquet")
    with pytest.raises(BadRowError, match=f"a.parquet, row 7: column 'p': the vector is .*{why}"):
        run(spec(pairs, MINE), tmp_path / "stopped")
    if value == 0.0:
        manifest = run(spec(pairs, MINE, on_bad_row="quarantine"), tmp_path / "out")
        assert manifest.steps[0].dropped == {"bad row": 1}
        left = [index for batch in plan_of(tmp_path / "out") for index in batch]
        assert sorted(left) == [row for row in range(ROWS) if row != 7]
        assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["index"] == 7
        Dataset(tmp_path / "out").verify()
