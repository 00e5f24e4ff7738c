"""Teachers: what turns texts into vectors, block by block.

A block's vectors are float32[rows, D] in one ``.npy`` a column, zero where a row had been dropped before. A
teacher is made once in each worker. Vectors that are zero or not finite make their row a bad row: such a row
would be as near to every other, or to none.

Cost: one pass over the texts; on disk 4·D bytes for each row and column. ``tfidf`` holds a float32[D, 65,536]
projection, fitted on a sample of at most 20,000 texts of each column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import StepError
from curation.pipelines.blocks import load_function, save, write_bad_rows
from curation.pipelines.workspace import Stage
from curation.recipe import Embed
from curation.source import BadRow, Block, Source

Float32 = npt.NDArray[np.float32]

FEATURES = 1 << 16
SAMPLE_ROWS = 20_000
SAMPLE_BLOCKS = 64
MODEL = "sentence-transformers:"


class Teacher(Protocol):
    """Turns texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> Float32:
        """float32[texts, D]; the same D at every call."""


class Tfidf:
    """TF-IDF over hashed words, projected to D dimensions, of length 1. Needs no model and no network.

    Args:
        idf: float32[65,536], what each hashed word weighs.
        components: float32[D, 65,536], orthonormal rows.
    """

    def __init__(self, idf: Float32, components: Float32) -> None:
        self.idf = idf
        self.components = components
        self._transposed = np.ascontiguousarray(components.T)

    def __call__(self, texts: Sequence[str]) -> Float32:
        from sklearn.preprocessing import normalize

        return np.asarray(normalize(_weighted(_counts(texts), self.idf) @ self._transposed), np.float32)

    @classmethod
    def fit(cls, texts: Sequence[str], dimensions: int, seed: int) -> "Tfidf":
        """Learn weights and projection from some texts: equal texts and seed give an equal teacher."""
        from sklearn.decomposition import TruncatedSVD
        from threadpoolctl import threadpool_limits

        counts = _counts(texts)
        idf = (np.log((1 + len(texts)) / (1 + counts.getnnz(axis=0))) + 1).astype(np.float32)
        # The order of a sum, and with it the last bits, would depend on the number of threads.
        with threadpool_limits(1):
            svd = TruncatedSVD(min(dimensions, len(texts)), random_state=seed % 2**32).fit(_weighted(counts, idf))
        return cls(idf, svd.components_.astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write ``idf.npy`` and then ``components.npy``."""
        save(folder / "idf.npy", self.idf)
        save(folder / "components.npy", self.components)

    @classmethod
    def load(cls, folder: Path) -> "Tfidf":
        """The inverse of :meth:`save`."""
        return cls(np.load(folder / "idf.npy"), np.load(folder / "components.npy"))


class WithinMemory:
    """A model that is given as many texts at a time as memory allows.

    The longest texts go first, so what fits them fits all; where memory runs out the number is halved, and the
    smaller one stays.

    Args:
        encode: a function of a list of texts; returns [texts, D] floats.
        size: texts at a time to begin with.
        name: what errors call it.
    """

    def __init__(self, encode: Callable[[list[str]], Any], size: int, name: str) -> None:
        self.encode = encode
        self.size = size
        self.name = name

    def __call__(self, texts: Sequence[str]) -> Float32:
        order = np.argsort([-len(text) for text in texts], kind="stable")
        parts: list[Float32] = []
        start = 0
        while start < len(order):
            rows = order[start : start + self.size]
            try:
                found = self.encode([texts[row] for row in rows])
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if self.size == 1:
                    raise StepError(
                        f"{self.name} runs out of memory on one text of {len(texts[rows[0]]):,} characters"
                    ) from error
                self.size = max(1, min(self.size, len(rows)) // 2)
                _release()
                continue
            vectors = np.asarray(found, np.float32)
            if vectors.ndim != 2 or len(vectors) != len(rows) or vectors.shape[1] == 0:
                raise StepError(
                    f"{self.name} returned shape {vectors.shape} for {len(rows)} texts: it must be [texts, D]"
                )
            parts.append(vectors)
            start += len(rows)
        if len({part.shape[1] for part in parts}) > 1:
            raise StepError(f"{self.name} returned vectors of different lengths")
        vectors = np.concatenate(parts)
        out = np.empty_like(vectors)
        out[order] = vectors
        return out


def load_teacher(step: Embed, fitted: Path, path: Sequence[str] = ()) -> Teacher:
    """Make the teacher of an ``embed`` step.

    Args:
        step: the step.
        fitted: the folder where :class:`FitTfidf` left its result.
        path: where ``module:attribute`` is looked for besides the installed packages.

    Raises:
        StepError: the model cannot be loaded.
        RecipeError: there is no such module or attribute.
    """
    if step.teacher == "tfidf":
        return Tfidf.load(fitted)
    if step.teacher.startswith(MODEL):
        return _sentence_transformer(step.teacher.removeprefix(MODEL), step.batch_size)
    made = load_function(step.teacher, path)
    return WithinMemory(made() if isinstance(made, type) else made, step.batch_size or 1024, f"teacher {step.teacher}")


def _sentence_transformer(name: str, size: int | None) -> Teacher:
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(name)
    except ImportError as error:
        raise StepError(f"teacher {MODEL}{name}: {error}. Install the extra: pip install 'curation[train]'") from error
    except (OSError, ValueError) as error:
        raise StepError(f"teacher {MODEL}{name} cannot be loaded: {error}") from error

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)

    return WithinMemory(encode, size or (32 if model.device.type == "cpu" else 1024), f"teacher {MODEL}{name}")


@dataclass(frozen=True)
class FitTfidf:
    """Fit the ``tfidf`` teacher on a sample of the rows that are still in: the columns share one space."""

    source: Source
    blocks: Sequence[Block]
    stage: Stage
    reason: Path
    step: Embed
    seed: int

    def __call__(self) -> None:
        rng = np.random.default_rng((self.seed, 5))
        inside = np.load(self.reason, mmap_mode="r") == 0
        some = np.sort(rng.permutation(len(self.blocks))[:SAMPLE_BLOCKS])
        texts: list[str] = []
        for number in some.tolist():
            block = self.blocks[number]
            rows = np.flatnonzero(inside[block.start : block.start + block.rows])
            rows = np.sort(rng.permutation(rows)[: -(-SAMPLE_ROWS // len(some))])
            table, _ = self.source.read(block, self.step.columns)
            for name in self.step.columns:
                texts += _prompted(table[name].take(pa.array(rows)), self.step.prompts.get(name))
        Tfidf.fit(texts, self.step.dimensions, self.seed).save(self.stage.folder)


@dataclass
class EmbedBlock:
    """Embed the rows of a block that are still in. ``columns`` has the stage of each column's vectors."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    reason: Path
    step: Embed
    quarantine: bool
    path: tuple[str, ...] = ()
    _teacher: Teacher | None = field(default=None, repr=False)

    def __call__(self, block: Block) -> None:
        if self._teacher is None:
            self._teacher = load_teacher(self.step, self.stage.folder, self.path)
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        vectors = {name: np.zeros((0, 0), np.float32) for name in self.columns}
        if inside.any():
            table, _ = self.source.read(block, tuple(self.columns))
            table = table.filter(pa.array(inside))
            for name in self.columns:
                vectors[name] = self._teacher(_prompted(table[name], self.step.prompts.get(name)))
        _write(self.source, self.stage, self.columns, block, inside, vectors, "the teacher's vector", self.quarantine)


@dataclass(frozen=True)
class CopyVectors:
    """Take the vectors of a block from columns of the source."""

    source: Source
    stage: Stage
    columns: Mapping[str, Stage]
    widths: Mapping[str, int]
    reason: Path
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        table, _ = self.source.read(block, tuple(self.columns))
        table = table.filter(pa.array(inside))
        vectors = {name: _lists(table[name], self.widths[name]) for name in self.columns}
        _write(self.source, self.stage, self.columns, block, inside, vectors, "the vector", self.quarantine)


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds vectors: lists of floats, of fixed size or not."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def vector_width(source: Source, blocks: Sequence[Block], column: str) -> int:
    """D of a column of vectors: that of its type, or of its first row that is not null.

    Raises:
        StepError: no row has a vector.
    """
    kind = source.schema.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for block in blocks:
        lengths = source.read(block, (column,))[0][column].combine_chunks().value_lengths().drop_null()
        if len(lengths) and lengths[0].as_py():
            return int(lengths[0].as_py())
    raise StepError(f"column {column!r} holds no vector")


def _lists(column: pa.ChunkedArray, width: int) -> Float32:
    """float32[rows, width]; a row of NaN for what is null or of another length."""
    values = column.combine_chunks()
    out = np.full((len(values), width), np.nan, np.float32)
    if pa.types.is_fixed_size_list(values.type):
        good = values.is_valid().to_numpy(zero_copy_only=False)
    else:
        good = values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) == width
    flat = values.filter(pa.array(good)).flatten()
    out[good] = flat.cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return out


def _write(
    source: Source,
    stage: Stage,
    columns: Mapping[str, Stage],
    block: Block,
    inside: npt.NDArray[np.bool_],
    vectors: Mapping[str, Float32],
    what: str,
    quarantine: bool,
) -> None:
    bad: dict[int, str] = {}
    rows = np.flatnonzero(inside)
    for name, found in vectors.items():
        finite = np.isfinite(found).all(axis=1)
        zero = finite & ~found.any(axis=1)
        for mask, why in ((~finite, "null, not finite or of another length than the others"), (zero, "zero")):
            for row in rows[mask].tolist():
                bad.setdefault(block.start + row, f"column {name!r}: {what} is {why}")
        whole = np.zeros((block.rows, found.shape[1]), np.float32)
        whole[rows] = found
        save(columns[name].piece(block.number), whole)
    listed = [BadRow(index, *source.locate(index), why) for index, why in bad.items()]
    write_bad_rows(stage, block, listed, quarantine=quarantine)


def _prompted(texts: pa.ChunkedArray, prompt: str | None) -> list[str]:
    values: list[str] = texts.to_pylist()
    return [prompt + text for text in values] if prompt else values


def _counts(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    # Words, the parts of snake_case names, and runs of signs, so that no text but white space is without any.
    words = HashingVectorizer(
        n_features=FEATURES,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
        token_pattern=r"[^\W_]+|_+|[^\w\s]+",
    )
    return words.transform(texts)


def _weighted(counts: Any, idf: Float32) -> Any:
    from sklearn.preprocessing import normalize

    weighted = counts.copy()
    weighted.data = (1 + np.log(weighted.data)) * idf[weighted.indices]
    return normalize(weighted, copy=False)


def _out_of_memory(error: BaseException) -> bool:
    # torch has an error of its own on CUDA only; its CPU allocator raises a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _release() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
