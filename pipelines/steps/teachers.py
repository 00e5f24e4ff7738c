"""Teachers: what turns texts into vectors. They know nothing of blocks or Ray.

``tfidf`` holds a float32[D, 65,536] projection and needs no model; a model is given as many texts at a time as
memory allows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from curation.errors import StepError
from curation.pipelines.engine.fingerprints import contents
from curation.pipelines.engine.functions import load_function
from curation.pipelines.engine.workspace import save

if TYPE_CHECKING:
    from curation.pipelines.steps.embed import Embed

Float32 = npt.NDArray[np.float32]

FEATURES = 1 << 16
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
        appears = counts.getnnz(axis=0)
        idf = (np.log((1 + len(texts)) / (1 + appears)) + 1).astype(np.float32)
        # Columns without any word only cost time, and most have none; scikit-learn wants two at least.
        used = np.union1d(np.flatnonzero(appears), [0, 1])
        components = np.zeros((min(dimensions, len(texts), len(used)), FEATURES), np.float32)
        # The order of a sum, and with it the last bits, would depend on the number of threads. The explained variance,
        # which nobody reads, is 0/0 where all texts are alike.
        with threadpool_limits(1), np.errstate(invalid="ignore"):
            svd = TruncatedSVD(len(components), random_state=seed % 2**32)
            components[:, used] = svd.fit(_weighted(counts, idf)[:, used]).components_
        return cls(idf, components)

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
                encoded = self.encode([texts[row] for row in rows])
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
            vectors = np.asarray(encoded, np.float32)
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


def load_teacher(step: "Embed", fitted: Path, path: Sequence[str] = ()) -> Teacher:
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


def model_version(name: str) -> dict[str, str]:
    """The hash of a model's folder, or the revision that the local cache of the Hugging Face hub has of it."""
    if Path(name).is_dir():
        return {name: contents(Path(name))}
    from huggingface_hub import try_to_load_from_cache

    for repository in (name, f"sentence-transformers/{name}"):
        if "/" in repository:
            config = try_to_load_from_cache(repository, "config.json")
            if isinstance(config, str):
                return {name: f"revision {Path(config).parent.name}"}
    return {}


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
