"""Teachers without Ray: what they return, what makes a row bad, and what happens when memory runs out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.arrow import load_matrix
from curation.errors import BadRowError, RecipeError, StepError
from curation.pipelines import Embed
from curation.pipelines.engine.workspace import Stage
from curation.pipelines.steps.b3.columns import CopyVectors, vector_width
from curation.pipelines.steps.embed import EmbedBlock, FitTfidf
from curation.pipelines.steps.teachers import Tfidf, WithinMemory, load_teacher
from curation.recipe import FileSource
from curation.sources import open_source
from curation.sources.base import Source

TEXTS = ["parse a json file", "open the json file", "sort a list of numbers", "sort numbers in a list", "yield tokens"]


def tiny(folder: Path, table: pa.Table) -> Source:
    pq.write_table(table, folder / "rows.parquet")
    return open_source(FileSource(format="parquet", path=str(folder / "rows.parquet")))


def test_tfidf_is_deterministic_and_knows_what_is_alike(tmp_path: Path) -> None:
    teacher = Tfidf.fit(TEXTS, dimensions=4, seed=1)
    vectors = teacher(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2]
    assert similarity[2, 3] > similarity[2, 0]
    teacher.save(tmp_path)
    np.testing.assert_array_equal(Tfidf.load(tmp_path)(TEXTS), vectors)
    np.testing.assert_array_equal(Tfidf.fit(TEXTS, dimensions=4, seed=1)(TEXTS[3:]), vectors[3:])


def test_tfidf_weighs_as_its_definition_says() -> None:
    texts = ["a b b", "a c"]
    vectors = Tfidf.fit(texts, dimensions=2, seed=0)(texts)
    rare = np.log(3 / 2) + 1
    first, second = np.array([1, (1 + np.log(2)) * rare, 0]), np.array([1, 0, rare])
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert vectors[0] @ vectors[1] == pytest.approx(expected, abs=1e-5)


def test_tfidf_of_one_word() -> None:
    vectors = Tfidf.fit(["word", "word word"], dimensions=8, seed=0)(["word", "other"])
    assert abs(vectors[0]).max() == pytest.approx(1, abs=1e-5)
    assert not vectors[1].any()


def lengths(texts: list[str]) -> Any:
    return [[len(text), 1] for text in texts]


class Counts:
    made = 0

    def __init__(self) -> None:
        Counts.made += 1

    def __call__(self, texts: list[str]) -> Any:
        return np.array(lengths(texts), np.float64)


def wrong_shape(texts: list[str]) -> Any:
    return np.ones(len(texts))


def step(teacher: str, **others: Any) -> Embed:
    return Embed.model_validate({"step": "embed", "columns": ["query"], "teacher": teacher, **others})


@pytest.mark.parametrize("name", ["lengths", "Counts"])
def test_module_and_callable(name: str, tmp_path: Path) -> None:
    teacher = load_teacher(step(f"{__name__}:{name}"), tmp_path)
    np.testing.assert_array_equal(teacher(["abc", "a"]), np.array([[3, 1], [1, 1]], np.float32))


def test_a_teacher_is_made_once_in_a_worker(tmp_path: Path) -> None:
    source = tiny(tmp_path, pa.table({"query": ["a", "bb", "ccc", "dddd"]}))
    np.save(tmp_path / "reason.npy", np.array([0, 1, 0, 0], np.int8))
    stage, vectors = Stage(tmp_path / "stage"), Stage(tmp_path / "vectors")
    reason = tmp_path / "reason.npy"
    work = EmbedBlock(
        source, stage, {"query": vectors}, reason, step(f"{__name__}:Counts", prompts={"query": "q:"}), False, {}
    )
    Counts.made = 0
    for block in source.blocks(2):
        work(block)
    assert Counts.made == 1
    # Row 1 is out already.
    np.testing.assert_array_equal(load_matrix(vectors.piece(0, "arrow"), "vector"), [[3, 1], [0, 0]])
    np.testing.assert_array_equal(load_matrix(vectors.piece(1, "arrow"), "vector"), [[5, 1], [6, 1]])


def test_bad_teachers(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"returned shape \(2,\) for 2 texts"):
        load_teacher(step(f"{__name__}:wrong_shape"), tmp_path)(["a", "b"])
    with pytest.raises(RecipeError, match="nowhere"):
        load_teacher(step("nowhere:teacher"), tmp_path)
    with pytest.raises(StepError, match="no/such/model cannot be loaded"):
        load_teacher(step(f"sentence-transformers:{tmp_path}/no/such/model"), tmp_path)


def test_sentence_transformer_from_a_path(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {
        word: number for number, word in enumerate(["[UNK]", *sorted({w for text in TEXTS for w in text.split()})])
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    table = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")
    model.save(str(tmp_path / "model"))
    vectors = load_teacher(step(f"sentence-transformers:{tmp_path}/model"), tmp_path)(TEXTS)
    means = np.stack([table[[words[word] for word in text.split()]].mean(0) for text in TEXTS])
    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)


def test_batches_shrink_until_they_fit() -> None:
    seen: list[int] = []

    def encode(texts: Sequence[str]) -> Any:
        seen.append(sum(map(len, texts)))
        if seen[-1] > 30:
            raise MemoryError if seen[-1] > 60 else RuntimeError("CUDA out of memory. Tried to allocate")
        return lengths(list(texts))

    teacher = WithinMemory(encode, 64, "teacher")
    texts = ["x" * n for n in (1, 9, 2, 10, 8, 3, 10, 10, 10, 10)]
    np.testing.assert_array_equal(teacher(texts)[:, 0], [len(text) for text in texts])
    assert seen[0] == 73
    assert teacher.size == 2
    before = len(seen)
    teacher(texts[:2])
    assert len(seen) == before + 1
    with pytest.raises(StepError, match="out of memory on one text of 100 characters"):
        teacher(["x" * 100])


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    def encode(texts: list[str]) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        WithinMemory(encode, 64, "teacher")(["a"])


def zero_or_nan(texts: list[str]) -> Any:
    return [[float("nan"), 1] if text == "nan" else [0, 0] if text == "zero" else [1, 2] for text in texts]


def test_vectors_that_make_a_row_bad(tmp_path: Path) -> None:
    source = tiny(tmp_path, pa.table({"query": ["good", "zero", "nan"]}))
    np.save(tmp_path / "reason.npy", np.zeros(3, np.int8))
    stage, vectors = Stage(tmp_path / "stage"), Stage(tmp_path / "vectors")
    reason = tmp_path / "reason.npy"
    (block,) = source.blocks(3)
    with pytest.raises(BadRowError, match="row 1: column 'query': the teacher's vector is zero"):
        EmbedBlock(source, stage, {"query": vectors}, reason, step(f"{__name__}:zero_or_nan"), False, {})(block)
    EmbedBlock(source, stage, {"query": vectors}, reason, step(f"{__name__}:zero_or_nan"), True, {})(block)
    bad = [json.loads(line) for line in stage.piece(0, "jsonl").read_text().splitlines()]
    assert [row["index"] for row in bad] == [1, 2]
    assert "not finite" in bad[1]["reason"]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.float32(), 2)])
def test_columns_of_vectors(kind: pa.DataType, tmp_path: Path) -> None:
    fixed = pa.types.is_fixed_size_list(kind)
    rows = [None, [1, 2], [3, 4], [5, 6] if fixed else [5]]
    values = pa.array([row and [np.float16(value) for value in row] for row in rows], kind)
    source = tiny(tmp_path, pa.table({"v": values}))
    np.save(tmp_path / "reason.npy", np.zeros(4, np.int8))
    stage, vectors = Stage(tmp_path / "stage"), Stage(tmp_path / "vectors")
    assert vector_width(source, source.blocks(4), "v") == 2
    (block,) = source.blocks(4)
    CopyVectors(source, stage, {"v": vectors}, {"v": 2}, tmp_path / "reason.npy", True)(block)
    found = load_matrix(vectors.piece(0, "arrow"), "vector")
    np.testing.assert_array_equal(found[1:3], [[1, 2], [3, 4]])
    bad = [json.loads(line)["index"] for line in stage.piece(0, "jsonl").read_text().splitlines()]
    assert bad == ([0] if fixed else [0, 3])


def test_the_sample_is_of_rows_that_are_still_in(tmp_path: Path) -> None:
    source = tiny(tmp_path, pa.table({"query": [*TEXTS, "outlier words never seen"]}))
    np.save(tmp_path / "reason.npy", np.array([0, 0, 0, 0, 0, 3], np.int8))
    stage = Stage(tmp_path / "stage")
    FitTfidf(source, source.blocks(2), stage, tmp_path / "reason.npy", step("tfidf", dimensions=4), 7)()
    idf = np.load(stage.folder / "idf.npy")
    expected = Tfidf.fit(TEXTS, 4, 7)
    np.testing.assert_array_equal(idf, expected.idf)
    np.testing.assert_array_equal(Tfidf.load(stage.folder)(TEXTS), expected(TEXTS))
