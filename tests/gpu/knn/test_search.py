"""knn against a plain float64 ranking; engines against each other; ties, exclusions, dtypes and budgets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.knn import cpu, cuda, faiss, knn
from curation.gpu.knn import search as module
from curation.gpu.knn.exclusions import Banned, Exclusions
from curation.gpu.knn.matrix import Matrix

EXACT = ["torch-cpu", "faiss-flat"]


def plain(queries: Any, database: Any, *, metric: str, banned: list[set[int]]) -> list[list[int]]:
    """Every rank of every query: score in float64, rounded to float32, ties by index."""
    out = []
    for query, left_out in zip(queries.astype(np.float64), banned, strict=True):
        rows = database.astype(np.float64)
        scores = (rows * query).sum(1) if metric == "ip" else -((rows - query) ** 2).sum(1)
        scores = scores.astype(np.float32)
        out.append([j for j in sorted(range(len(rows)), key=lambda j: (-scores[j], j)) if j not in left_out])
    return out


def embeddings(seed: int, count: int, width: int = 12) -> Any:
    # Small integers: many equal scores, all of them exact in every precision.
    return np.random.default_rng(seed).integers(-3, 4, (count, width)).astype(np.float32)


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_ranks_and_ties_are_those_of_a_plain_ranking(engine: str, metric: str) -> None:
    queries, database = embeddings(0, 90), embeddings(1, 300)
    groups = np.random.default_rng(2).integers(-1, 40, 300)
    exclude = np.random.default_rng(3).integers(-1, 300, (90, 2))
    banned = [
        {int(j) for j in exclude[i]} | set(np.flatnonzero((groups == groups[i]) & (groups[i] >= 0)).tolist())
        for i in range(90)
    ]
    expected = plain(queries, database, metric=metric, banned=banned)
    found = knn(
        queries, database, count=20, offset=7, metric=metric, engine=engine, exclude=exclude,
        exclude_same=[(groups[:90], groups)],
    )  # fmt: skip
    assert found.exact
    assert found.recall is None
    assert found.engine == engine
    assert found.indices.dtype == np.int32
    assert found.indices.tolist() == [ranks[7:27] for ranks in expected]
    assert np.all(np.diff(found.scores, axis=1) <= 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([*EXACT, "faiss-ivf"]), st.sampled_from(["ip", "l2"]), st.booleans())
def test_labels_that_many_rows_share(seed: int, engine: str, metric: str, copies: bool) -> None:
    # More than MOST_LISTED rows of a label, so that ids are compared; equal rows make queries be ranked in full.
    rng = np.random.default_rng(seed)
    database = embeddings(seed, 3 if copies else 700)[rng.integers(0, 3 if copies else 700, 700)]
    labels, groups = rng.integers(-1, 2, 700), rng.integers(-1, 90, 700)
    queries = rng.permutation(700)[:20]
    same = [(labels[queries], labels), (groups[queries], groups)]
    banned = [
        {i} | {j for column in (labels, groups) if column[i] >= 0 for j in np.flatnonzero(column == column[i]).tolist()}
        for i in queries
    ]
    expected = plain(database[queries], database, metric=metric, banned=banned)
    found = knn(
        database[queries], database, count=9, metric=metric, engine=engine, exclude=queries, exclude_same=same,
        memory_budget=1 << 20,
    )  # fmt: skip
    assert found.exact == (engine != "faiss-ivf")
    if found.exact:
        assert found.indices.tolist() == [ranks[:9] for ranks in expected]
    else:
        assert all(j not in left_out for row, left_out in zip(found.indices.tolist(), banned, strict=True) for j in row)


@pytest.mark.gpu
def test_labels_on_the_card() -> None:
    rows, labels = embeddings(18, 3000), np.random.default_rng(19).integers(-1, 4, 3000)
    options: Any = {"count": 20, "exclude": np.arange(3000), "exclude_same": [(labels, labels)]}
    cpu, cuda = (knn(rows, rows, engine=engine, **options) for engine in ("torch-cpu", "torch-cuda"))
    np.testing.assert_array_equal(cpu.indices, cuda.indices)
    assert cuda.exact


@pytest.mark.parametrize("engine", EXACT)
def test_more_copies_than_the_shortlist_holds_still_break_ties_by_index(engine: str) -> None:
    database = np.repeat(embeddings(4, 5), 100, axis=0)[np.random.default_rng(5).permutation(500)]
    found = knn(database[:30], database, count=10, exclude=np.arange(30), engine=engine)
    expected = plain(database[:30], database, metric="ip", banned=[{i} for i in range(30)])
    assert found.indices.tolist() == [ranks[:10] for ranks in expected]
    assert found.rechecked > 0


def test_engines_and_tilings_agree_on_real_numbers() -> None:
    rng = np.random.default_rng(6)
    queries, database = (rng.normal(size=(n, 33)).astype(np.float32) for n in (400, 1500))
    reference = knn(queries, database, count=30, offset=5, engine="torch-cpu")
    for options in ({"engine": "faiss-flat"}, {"memory_budget": 1 << 20}, {"engine": "auto"}):
        other = knn(queries, database, count=30, offset=5, **options)
        np.testing.assert_array_equal(other.indices, reference.indices)
        np.testing.assert_array_equal(other.scores, reference.scores)
    assert reference.rechecked == 0


def test_the_topk_path_of_cuda_finds_the_same_shortlist_on_a_cpu() -> None:
    rng = np.random.default_rng(7)
    queries, database = (rng.normal(size=(n, 16)).astype(np.float32) for n in (50, 700))
    labels = rng.integers(-1, 3, 700)
    banned = Banned(np.arange(50), np.arange(50), ((labels[:50], labels),))
    ids = [
        cpu.shortlist(
            queries, Matrix(database, "database"), 20, banned, l2=True, tile=256,
            device=torch.device("cpu"), precision="float32", scan=scan,
        )[0]
        for scan in (True, False)
    ]  # fmt: skip
    np.testing.assert_array_equal(np.sort(ids[0], 1), np.sort(ids[1], 1))
    assert not banned.among(ids[1], 700).any()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_cuda_agrees_with_the_cpu(precision: str) -> None:
    rng = np.random.default_rng(8)
    queries, database = (rng.normal(size=(n, 64)).astype(np.float32) for n in (300, 5000))
    cpu = knn(queries, database, count=50, offset=10, engine="torch-cpu")
    cuda = knn(queries, database, count=50, offset=10, engine="torch-cuda", precision=precision)
    np.testing.assert_array_equal(cpu.indices, cuda.indices)
    np.testing.assert_array_equal(cpu.scores, cuda.scores)
    assert cuda.exact


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_the_search_on_the_device_is_the_search_by_blocks(metric: str) -> None:
    # On a CPU here: the engine itself goes to CUDA.
    rows, groups = embeddings(14, 120), np.random.default_rng(15).integers(-1, 30, 120)
    banned = Exclusions(np.arange(120), [(groups, groups)], 120, 120)
    half = rows.astype(np.float16)
    for values in (rows, half, torch.from_numpy(rows).bfloat16()):
        matrix = Matrix(values, "rows")
        found = cuda.search(
            values, values, matrix, matrix, banned, need=40, metric=metric, precision="float32",
            device=torch.device("cpu"), memory_budget=1 << 24,
        )  # fmt: skip
        assert found is not None
        ours = module.exact_result(*found, 30, 10, "torch-cuda", "float32", 120)
        expected = knn(
            rows, rows, count=30, offset=10, metric=metric, engine="torch-cpu", exclude=np.arange(120),
            exclude_same=[(groups, groups)],
        )  # fmt: skip
        np.testing.assert_array_equal(ours.indices, expected.indices)
        np.testing.assert_array_equal(ours.scores, expected.scores)
        assert ours.indices.dtype == expected.indices.dtype


def test_too_many_exclusions_are_left_to_the_search_by_blocks() -> None:
    rows = embeddings(16, 400)
    matrix, same = Matrix(rows, "rows"), np.zeros(400, np.int64)
    banned = Exclusions(None, [(same, same)], 400, 400)
    found = cuda.search(
        rows, rows, matrix, matrix, banned, need=5, metric="ip", precision="float32", device=torch.device("cpu"),
        memory_budget=1 << 24,
    )  # fmt: skip
    assert found is None


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["faiss-gpu", "faiss-gpu-ivf", "faiss-cagra"])
def test_faiss_on_the_card(engine: str) -> None:
    if not faiss.gpus():
        pytest.skip("this FAISS sees no GPU")
    rows = np.random.default_rng(17).normal(size=(20_000, 32)).astype(np.float32)
    try:
        found = knn(rows[:500], rows, count=20, engine=engine, exclude=np.arange(500))
    except ValueError as error:
        pytest.skip(str(error))
    truth = knn(rows[:500], rows, count=20, engine="torch-cpu", exclude=np.arange(500))
    if found.exact:
        np.testing.assert_array_equal(found.indices, truth.indices)
    else:
        assert found.recall is not None
        assert found.recall > 0.5


def test_sixteen_bit_inputs_and_memory_maps_are_read_as_what_they_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    half = rng.normal(size=(200, 24)).astype(np.float16)
    np.save(tmp_path / "rows.npy", half)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected = knn(half.astype(np.float32), half.astype(np.float32), count=9)
    np.testing.assert_array_equal(knn(mapped, mapped, count=9).scores, expected.scores)
    brain = torch.from_numpy(half.astype(np.float32)).to(torch.bfloat16)
    wide = brain.float()
    np.testing.assert_array_equal(knn(brain, brain, count=9).scores, knn(wide, wide.numpy(), count=9).scores)


@pytest.mark.parametrize("engine", ["faiss-ivf", "faiss-hnsw"])
def test_an_approximate_engine_reports_its_recall_truthfully(engine: str) -> None:
    rng = np.random.default_rng(10)
    database = rng.normal(size=(2000, 8)).astype(np.float32)
    options = {"nprobe": 2, "nlist": 40}
    found = knn(database, database, count=15, exclude=np.arange(2000), engine=engine, options=options,
                recall_sample=2000)  # fmt: skip
    truth = knn(database, database, count=15, exclude=np.arange(2000))
    overlap = [len(set(a) & set(b)) / 15 for a, b in zip(found.indices.tolist(), truth.indices.tolist(), strict=True)]
    assert not found.exact
    assert found.recall == pytest.approx(np.mean(overlap), abs=1e-9)
    assert not (found.indices == np.arange(2000)[:, None]).any()
    if engine == "faiss-ivf":
        assert 0.2 < found.recall < 0.99
        assert found.settings["nprobe"] == "2"


def test_fewer_rows_than_ranks_are_padded() -> None:
    rows = embeddings(11, 5)
    found = knn(rows, rows, count=10, offset=2, exclude=np.arange(5))
    assert (found.indices >= 0).sum(1).tolist() == [2] * 5
    for offset in (4, 5, 9):
        assert (knn(rows, rows, count=3, offset=offset, exclude=np.arange(5)).indices == -1).all()
    assert np.isneginf(found.scores[:, 2:]).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_any_shape(seed: int, queries: int, rows: int, count: int, offset: int) -> None:
    left, right = embeddings(seed, queries, 3), embeddings(seed + 1, rows, 3)
    expected = plain(left, right, metric="ip", banned=[set()] * queries)
    found = knn(left, right, count=count, offset=offset, engine="torch-cpu").indices
    assert [[j for j in ranks if j >= 0] for ranks in found.tolist()] == [
        ranks[offset : offset + count] for ranks in expected
    ]


def test_no_engine_holds_a_square_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    real = torch.Tensor.__matmul__

    def spy(self: Any, other: Any) -> Any:
        out = real(self, other)
        largest.append(out.numel() * out.element_size())
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    rows = np.random.default_rng(12).normal(size=(3000, 4)).astype(np.float32)
    knn(rows, rows, count=5, engine="torch-cpu", memory_budget=1 << 20)
    assert max(largest) < 1 << 20 < 3000 * 3000 * 4


def test_mistakes_are_named() -> None:
    rows = embeddings(13, 10)
    bad = rows.copy()
    bad[4, 1] = np.nan
    for message, arguments in (
        ("row 4 of database holds NaN", {"database": bad}),
        ("12 columns, but the database has 3", {"database": rows[:, :3]}),
        ("must be float32, float16 or bfloat16", {"database": rows.astype(np.int32)}),
        ("must have shape", {"queries": rows[0]}),
        ("engine must be one of", {"engine": "annoy"}),
        ("metric must be one of", {"metric": "cosine"}),
        ("count must be at least 1", {"count": 0}),
        ("memory_budget must be at least 1 MiB", {"memory_budget": 1000}),
        ("exclude has 3 rows, but there are 10", {"exclude": np.arange(3)}),
        ("exclude must hold database rows 0..9", {"exclude": np.arange(1, 11)}),
        (r"must have shapes \(10,\)", {"exclude_same": [(np.arange(9), np.arange(10))]}),
    ):
        with pytest.raises(ValueError, match=message):
            knn(**{"queries": rows, "database": rows, "count": 3, **arguments})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device"):
            knn(rows, rows, count=3, engine="torch-cuda")


def test_auto_takes_what_the_size_allows() -> None:
    if torch.cuda.is_available():
        pytest.skip("the choice below is a CPU's")
    assert module.choose("auto", 1000) == "torch-cpu"
    assert module.choose("auto", module.EXACT_ON_CPU + 1) in ("faiss-ivf", "torch-cpu")
    assert module.choose("auto", module.EXACT_ON_CPU + 1, compared=True) == "torch-cpu"
    assert module.choose("faiss-hnsw", 10) == "faiss-hnsw"
