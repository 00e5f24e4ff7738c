"""ZIP-FIT against its formula, written out with each codec's own Python call."""

import ast
import gzip
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable

import lz4.frame
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import Selection, ZipFit
from curation.gpu.threads import in_threads

SIZE: dict[str, Callable[[bytes], int]] = {
    "lz4": lambda data: len(lz4.frame.compress(data, compression_level=0)),
    "gzip": lambda data: len(gzip.compress(data, 1)),
    "zstd": lambda data: len(zstandard.ZstdCompressor(level=1).compress(data)),
}


def reference(texts: list[str], targets: list[str], size: Callable[[bytes], int]) -> np.ndarray:
    rows = []
    for x in texts:
        cx = size(x.encode())
        row = []
        for t in targets:
            ct, both = size(t.encode()), size((x + t).encode())
            row.append((both - min(cx, ct)) / max(cx, ct))
        rows.append(row)
    return np.array(rows)


def functions_and_docstrings() -> tuple[list[str], list[str]]:
    """Real text that is on every machine: the source and the docstrings of some standard modules."""
    import argparse
    import inspect as inspect_module
    import statistics
    import tarfile
    import typing

    functions, docstrings = [], []
    for module in (argparse, inspect_module, json, statistics, subprocess, tarfile, typing):
        source = inspect.getsource(module)
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                functions.append("".join(lines[node.lineno - 1 : node.end_lineno]))
                docstrings.append(ast.get_docstring(node) or "")
    return functions, [text for text in docstrings if len(text) > 60]


FUNCTIONS, DOCSTRINGS = functions_and_docstrings()
texts_strategy = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=400),
        st.text(alphabet="ab\n", min_size=1, max_size=400),
        st.builds(lambda word, times: word * times, st.text(min_size=1, max_size=20), st.integers(1, 400)),
        st.sampled_from(FUNCTIONS),
        st.builds(
            lambda seed, length: "".join(map(chr, np.random.default_rng(seed).integers(32, 700, length))),
            st.integers(0, 99),
            st.integers(1, 3_000),
        ),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("codec", list(SIZE))
@given(texts=texts_strategy, targets=texts_strategy)
@settings(deadline=None, max_examples=40)
def test_every_pair_is_the_formula(codec: str, texts: list[str], targets: list[str]) -> None:
    selector = ZipFit(targets=targets, codec=codec, threads=1)
    expected = reference(texts, targets, SIZE[codec])
    np.testing.assert_allclose(selector.compute(texts), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(selector.score(texts), 1 - expected.mean(axis=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("codec", list(SIZE))
def test_texts_longer_than_the_codecs_window(codec: str) -> None:
    random = np.random.default_rng(1)
    noise = "".join(map(chr, random.integers(32, 127, 70_000)))
    sources = [noise, "word " * 14_000, "é" * 32_768, noise[:65_536], noise[:65_530], noise[:65_525], "x"]
    targets = [noise[100:160], noise[:66_000], "é", "hello, hello, hello, hello", noise[60_000:65_600]]
    expected = reference(sources, targets, SIZE[codec])
    np.testing.assert_allclose(ZipFit(targets=targets, codec=codec).compute(sources), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("codec", "level", "size"),
    [
        ("lz4", 2, lambda data: len(lz4.frame.compress(data, compression_level=2))),
        ("lz4", 9, lambda data: len(lz4.frame.compress(data, compression_level=9))),
        ("lz4", -5, lambda data: len(lz4.frame.compress(data, compression_level=-5))),
        ("gzip", 6, lambda data: len(gzip.compress(data, 6))),
        ("zstd", 19, lambda data: len(zstandard.ZstdCompressor(level=19).compress(data))),
    ],
)
def test_other_levels(codec: str, level: int, size: Callable[[bytes], int]) -> None:
    expected = reference(FUNCTIONS[:10], DOCSTRINGS[:5], size)
    found = ZipFit(targets=DOCSTRINGS[:5], codec=codec, level=level).compute(FUNCTIONS[:10])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_real_text_ranks_as_the_formula_does() -> None:
    expected = 1 - reference(FUNCTIONS[:200], DOCSTRINGS[:30], SIZE["lz4"]).mean(axis=1)
    chosen = ZipFit(targets=DOCSTRINGS[:30]).select(FUNCTIONS[:200], k=20)
    assert isinstance(chosen, Selection)
    assert chosen.size == 200
    assert chosen.indices.tolist() == np.lexsort((np.arange(200), -expected))[:20].tolist()
    np.testing.assert_allclose(chosen.scores, expected[chosen.indices], atol=1e-9)
    np.testing.assert_array_equal(chosen.weights, np.ones(20, np.float32))


def test_gzip_looks_at_more_than_length() -> None:
    texts = ["def f(x):\n    return x + 1\n" * 3, "0123456789abcdefghijklmnopqrstuvw" * 2 + "the quick red"]
    scores = ZipFit(targets=["def g(y):\n    return y + 1\n"], codec="gzip").score(texts)
    assert scores[0] > scores[1]


def test_ties_go_to_the_lower_position_across_blocks() -> None:
    texts = ["far from it: 98765"] * 20_000
    for position in (19_999, 8_191, 8_192, 17):
        texts[position] = "the target itself, the target"
    chosen = ZipFit(targets=["the target itself, the target"]).select(texts, k=6)
    assert chosen.indices.tolist() == [17, 8_191, 8_192, 19_999, 0, 1]


@pytest.mark.parametrize("mode", ["exact", "shortlist"])
def test_every_kind_of_source_gives_the_same(mode: str) -> None:
    texts = FUNCTIONS[:300]
    selector = ZipFit(targets=DOCSTRINGS[:80], mode=mode, shortlist_fraction=0.2)
    plain = selector.select(texts, k=10)
    strings = pa.array(texts)
    sources = [
        tuple(texts),
        strings,
        strings.cast(pa.large_string()),
        strings.cast(pa.string_view()),
        strings.dictionary_encode(),
        pa.array(["", None, *texts, None])[2:-1],
        pa.chunked_array([strings[:7], strings[7:7], strings[7:]]),
        (text for text in texts),
    ]
    for source in sources:
        chosen = selector.select(source, k=10)
        np.testing.assert_array_equal(chosen.indices, plain.indices)
        np.testing.assert_array_equal(chosen.scores, plain.scores)
        assert chosen.size == 300


def test_a_stream_is_never_held() -> None:
    alive = 0
    most = 0

    class Text(str):
        def __init__(self, *_: object) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    selector = ZipFit(targets=["is 7777 a number? it is number 7777"])
    chosen = selector.select((Text(f"number {i}, {i % 7} again") for i in range(30_000)), k=9)
    expected = selector.select([f"number {i}, {i % 7} again" for i in range(30_000)], k=9)
    np.testing.assert_array_equal(chosen.indices, expected.indices)
    assert most <= 2_048


@pytest.mark.parametrize("codec", list(SIZE))
def test_threads_do_not_change_a_bit(codec: str) -> None:
    texts = FUNCTIONS[:150]
    one, four = (ZipFit(targets=DOCSTRINGS[:40], codec=codec, threads=n).score(texts) for n in (1, 4))
    np.testing.assert_array_equal(one, four)
    alone = [ZipFit(targets=DOCSTRINGS[:40], codec=codec).score([text])[0] for text in texts[:5]]
    np.testing.assert_array_equal(one[:5], alone)


def test_in_threads_keeps_order_and_reads_little_ahead() -> None:
    read: list[int] = []
    results = in_threads(lambda n: n * n, (read.append(n) or n for n in range(1_000)), 3)
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    assert len(read) <= 4 + 3 * 3
    results.close()  # type: ignore[attr-defined]


def test_pickles_after_use() -> None:
    selector = ZipFit(targets=DOCSTRINGS[:5], codec="gzip")
    scores = selector.score(FUNCTIONS[:5])
    copy = pickle.loads(pickle.dumps(selector))
    assert copy == selector
    np.testing.assert_array_equal(copy.score(FUNCTIONS[:5]), scores)


def test_no_texts() -> None:
    selector = ZipFit(targets=["a", "b"])
    assert selector.score([]).shape == (0,)
    assert selector.compute(pa.array([], pa.string())).shape == (0, 2)
    for each in (selector, ZipFit(targets=["a"] * 30, mode="shortlist")):
        with pytest.raises(ValueError, match="k is 1, but there are 0 texts"):
            each.select([], k=1)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a"] * 2_000 + ["", "b"], ValueError, "text 2000 is empty"),
        (["a"] * 2_000 + [None], ValueError, "text 2000 is null"),
        (["a", 3], TypeError, "text 1 is int"),
        (["a", "\ud800"], ValueError, "text 1 cannot be written as UTF-8"),
        (["a", b"b"], TypeError, "text 1 is bytes, not a string"),
        (["a", bytearray(b"b")], TypeError, "text 1 is bytearray"),
        ({"a", "b"}, TypeError, "which a set has not"),
        (pa.array([b"a"]), TypeError, "binary"),
        ("abc", TypeError, "not one string"),
        (pa.array(["a", None]), ValueError, "text 1 is null"),
        (pa.chunked_array([["a", "b"], ["c", ""]]), ValueError, "text 3 is empty"),
        (pa.array([None, None]), ValueError, "text 0 is null"),
        (pa.array([1, 2]), TypeError, "int64"),
        (pa.table({"text": ["a"]}), TypeError, "pass table"),
    ],
)
@pytest.mark.parametrize("mode", ["exact", "shortlist"])
def test_bad_texts(texts: object, error: type[Exception], message: str, mode: str) -> None:
    selector = ZipFit(targets=["a"] * 30, mode=mode)
    with pytest.raises(error, match=message):
        selector.score(texts)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        selector.select(texts, k=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": []}, ValueError, "at least one"),
        ({"targets": ["a", ""]}, ValueError, "targets: text 1 is empty"),
        ({"targets": ["a", None]}, ValueError, "targets: text 1 is null"),
        ({"targets": "abc"}, TypeError, "not one string"),
        ({"targets": [b"abc"]}, TypeError, "targets: text 0 is bytes, not a string"),
        ({"targets": frozenset({"a"})}, TypeError, "targets: texts must have an order"),
        ({"codec": "snappy"}, ValueError, "lz4, gzip, zstd"),
        ({"codec": "gzip", "level": 0}, ValueError, "stores without compressing"),
        ({"codec": "zstd", "level": 23}, ValueError, "22"),
        ({"mode": "fast"}, ValueError, "exact, shortlist"),
        ({"shortlist_fraction": 0.0}, ValueError, "shortlist_fraction"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ZipFit(**{"targets": ["a"], **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("mode", ["exact", "shortlist"])
def test_bad_k(k: int, mode: str) -> None:
    with pytest.raises(ValueError, match=f"k (must be at least 1, not {k}|is {k}, but there are 3)"):
        ZipFit(targets=["a"] * 30, mode=mode).select(["a", "b", "c"], k=k)


def test_importing_compiles_nothing() -> None:
    code = (
        "import curation.selectors.zipfit.method, curation.selectors.zipfit.lz4 as z, numba.core.dispatcher as d\n"
        "assert not [f for f in vars(z).values() if isinstance(f, d.Dispatcher) and f.signatures]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
