"""A reference model's embeddings, computed once and read by index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from curation import Pair
from curation.errors import SourceError
from curation.selectors.jest.reference import EmbeddingCache


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_cached_reference_gives_its_rows_by_index(tmp_path: Path, dtype: type) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 30, 5)).astype(dtype)
    path = tmp_path / "reference.arrow"
    EmbeddingCache.write(path, (Pair(a[i : i + 7], b[i : i + 7], 9.5, -2.25) for i in range(0, 30, 7)))
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "a.npy", a)
    np.save(folder / "b.npy", b)
    (folder / "loss.json").write_text('{"scale": 9.5, "bias": -2.25}')
    stream = tmp_path / "stream.arrow"
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        with pa.ipc.new_stream(str(stream), table.schema) as writer:
            writer.write_table(table)
    wanted = np.array([29, 0, 7, 7, 13])
    for place in (path, folder, stream):
        cache = EmbeddingCache(place)
        got = cache.pair(wanted)
        assert len(cache) == 30
        assert (got.scale, got.bias) == (9.5, -2.25)
        np.testing.assert_array_equal(got.a.numpy(), a[wanted])
        np.testing.assert_array_equal(got.b.numpy(), b[wanted])
        with pytest.raises(ValueError, match="row 30 is out of range"):
            cache.pair([3, 30])


def test_what_a_model_and_numpy_have_is_written_as_it_is(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(">f4")
    scale = torch.nn.Parameter(torch.tensor(9.5))
    EmbeddingCache.write(tmp_path / "reference.arrow", [Pair(a, b[::-1], scale, torch.tensor([-2.0]))])
    got = EmbeddingCache(tmp_path / "reference.arrow").pair(np.arange(6))
    assert (got.scale, got.bias) == (9.5, -2.0)
    np.testing.assert_array_equal(got.a.numpy(), a.astype("f4"))
    np.testing.assert_array_equal(got.b.numpy(), b[::-1].astype("f4"))


def test_a_bad_cache_is_named_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reference.arrow"
    with pytest.raises(SourceError, match="reference.arrow"):
        EmbeddingCache(path)
    path.write_bytes(b"not arrow")
    with pytest.raises(SourceError, match="not an embedding cache"):
        EmbeddingCache(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="batch 1"):
        EmbeddingCache.write(path, [Pair(np.ones((3, width)), np.ones((3, width))) for width in (4, 5)])
    with pytest.raises(ValueError, match="no batch"):
        EmbeddingCache.write(path, [])
    assert sorted(tmp_path.iterdir()) == before
    assert path.read_bytes() == b"not arrow"
