"""ZIP-FIT: choose the texts that compress best together with the target's.

``NCD(x, t) = (C(x ⊕ t) - min(C(x), C(t))) / max(C(x), C(t))``, with C the compressed size in bytes and ⊕
concatenation, source first; ``alignment(x) = 1 - mean over targets t of NCD(x, t)``; the k highest are chosen.

Exact mode costs O(N · T) compressions, spread over threads, and memory for one block of texts and k rows.
With LZ4 each source is encoded once for all targets. Shortlist mode (:mod:`curation.selectors.zipfit.shortlist`)
computes some per cent of the pairs and may miss some of the best k: :meth:`ZipFit.recall` measures how many.

Obbad et al. 2024, "ZIP-FIT: Embedding-Free Data Selection via Compression-Based Alignment", arXiv 2410.18194.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.gpu.threads import in_threads, usable_threads
from curation.selection import Selection
from curation.selectors.zipfit import shortlist
from curation.selectors.zipfit.codecs import CODECS, Sizer, Sizes
from curation.selectors.zipfit.texts import TextBlock, joined, text_blocks

MODES = ("exact", "shortlist")
_PAIRS = 1 << 14
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ZipFit:
    """Scores texts by how well they compress with the target's texts, and selects the best.

    Wherever ``texts`` is taken it may be a list, an Arrow array (plain or chunked; read without making Python
    strings), or a generator, which is read once and never held in memory.

    Args:
        targets: T ≥ 1 texts of the target task, none empty: a sequence or an Arrow array of strings.
        codec: ``"lz4"`` (the paper's best), ``"gzip"`` or ``"zstd"``; sizes are those of
            ``lz4.frame.compress``, ``gzip.compress`` and ``zstandard.ZstdCompressor.compress``.
        level: the codec's level; None is its lightest useful one (lz4 0, gzip 1, zstd 1).
        mode: ``"exact"``, or ``"shortlist"``: :meth:`select` then estimates every alignment from a sample of
            the targets and computes the exact one for the most promising only.
        shortlist_fraction: the share of candidates, in (0, 1], that shortlist mode scores exactly; never
            fewer than 2·k. With 24 targets or fewer there is nothing to gain, and all are.
        threads: how many; None is as many as this process may use. Results do not depend on it.

    Raises:
        ValueError: no targets, an empty target, an unknown codec or mode, or a number out of its range.
        TypeError: targets are not strings, or a set, which has no order.
    """

    targets: Sequence[str]
    codec: str = "lz4"
    level: int | None = None
    mode: str = "exact"
    shortlist_fraction: float = 0.03
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {self.codec!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        levels = CODECS[self.codec].levels
        if self.level is not None and self.level not in levels:
            raise ValueError(
                f"level must be from {levels[0]} to {levels[-1]} for {self.codec}, not {self.level!r}"
                + (": level 0 stores without compressing" if (self.codec, self.level) == ("gzip", 0) else "")
            )
        if not 0 < self.shortlist_fraction <= 1:
            raise ValueError(f"shortlist_fraction must be in (0, 1], not {self.shortlist_fraction}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        if isinstance(self.targets, str | bytes):
            raise TypeError("targets must be a list of strings, not one string")
        try:
            blocks = list(text_blocks(self.targets))
        except (ValueError, TypeError) as error:
            raise type(error)(f"targets: {error}") from error
        if not blocks:
            raise ValueError("targets must hold at least one text")
        block = joined(blocks)
        object.__setattr__(self, "targets", tuple(block.text(j).decode() for j in range(len(block))))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def compute(self, texts: Iterable[Any]) -> Floats:
        """The distance of every text to every target, exact in either mode.

        Returns:
            float64[N, T], NCD(x, t); 8·N·T bytes, so pass texts in parts where that is too much.

        Raises:
            ValueError: a text is null or empty; the message names its position.
            TypeError: texts are not strings.
        """
        parts = list(self._each_block(texts, lambda distances: distances))
        return np.concatenate(parts) if parts else np.empty((0, len(self.targets)))

    def score(self, texts: Iterable[Any]) -> Floats:
        """The alignment of every text, exact in either mode; higher is closer to the target.

        Returns:
            float64[N], 1 - mean over targets of NCD; never NaN.

        Raises:
            ValueError: a text is null or empty; the message names its position.
            TypeError: texts are not strings.
        """
        parts = [scores for _, scores in self._alignments(texts)]
        return np.concatenate(parts) if parts else np.empty(0)

    def select(self, texts: Iterable[Any], k: int) -> Selection:
        """The k texts of highest alignment, best first; ties go to the lower position.

        Exact mode keeps the best k of a stream and one block of it. Shortlist mode reads texts more
        than once, so it copies what is not an Arrow array to a temporary file.

        Returns:
            A selection with ``indices`` int64[k], ``scores`` float64[k] (exact alignments in either mode)
            and ``size`` N.

        Raises:
            ValueError: k is below 1 or above N; a text is null or empty (the message names its position).
            TypeError: texts are not strings.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if self.mode == "exact" or len(self.targets) <= shortlist.MOST_COLUMNS:
            best = _Best(k)
            for start, scores in self._alignments(texts):
                best.offer(np.arange(start, start + len(scores)), scores)
        else:
            best = self._select_shortlist(texts, k)
        if best.seen < k:
            raise ValueError(f"k is {k}, but there are {best.seen} texts: ask for fewer")
        return Selection(indices=best.indices, scores=best.scores, size=best.seen)

    def recall(self, texts: Iterable[Any], k: int) -> float:
        """The share of the exact best k that shortlist mode finds, in [0, 1].

        It scores all texts exactly: give it a sample of the candidates, and k in proportion.

        Raises:
            ValueError, TypeError: as :meth:`select`.
        """
        with shortlist.rereadable(texts) as column:
            exact, shortlisted = (replace(self, mode=mode).select(column, k).indices for mode in MODES)
        return len(np.intersect1d(exact, shortlisted)) / k

    def _select_shortlist(self, texts: Iterable[Any], k: int) -> "_Best":
        """The best k of the shortlist; every text is checked before the first is scored."""
        with shortlist.rereadable(texts) as column:
            best = _Best(k)
            best.seen = size = len(column)
            deque(text_blocks(column), maxlen=0)
            if size < k:
                return best
            count = min(max(int(np.ceil(self.shortlist_fraction * size)), 2 * k), size)
            rows = shortlist.highest(self._estimates(column), count)
            for start, scores in self._alignments(column.take(rows)):
                best.offer(rows[start : start + len(scores)], scores)
            best.seen = size
            return best

    def _estimates(self, column: Any) -> Floats:
        """float64[N], the order of which is nearly that of the alignments."""
        sample = shortlist.sample(len(column))
        count = shortlist.column_count(len(self.targets))
        columns, weights = shortlist.pick_columns(self.compute(column.take(sample)), count)
        few = replace(self, targets=[self.targets[j] for j in columns])
        parts = few._each_block(column, lambda distances: -(distances * weights).sum(axis=1))
        return np.concatenate([*parts, np.empty(0)])

    def _alignments(self, texts: Iterable[Any]) -> Iterator[tuple[int, Floats]]:
        start = 0
        for scores in self._each_block(texts, lambda distances: 1 - distances.mean(axis=1)):
            yield start, scores
            start += len(scores)

    def _each_block(self, texts: Iterable[Any], reduce: Callable[[Floats], Floats]) -> Iterator[Floats]:
        """``reduce(NCD)`` of consecutive texts, NCD float64[n, T], in order."""
        sizer, sizes = self._prepared
        rows = max(1, _PAIRS // len(self.targets))
        parts = (part for block in text_blocks(texts) for part in block.split(rows))

        def work(part: TextBlock) -> Floats:
            return reduce(ncd(*sizer(part), sizes))

        return in_threads(work, parts, self.threads or usable_threads())

    @cached_property
    def _prepared(self) -> tuple[Sizer, Sizes]:
        codec = CODECS[self.codec]
        level = codec.default if self.level is None else self.level
        block = joined(list(text_blocks(self.targets)))
        sizes = [codec.size(block.text(j), level) for j in range(len(block))]
        return codec.sizer(block, level), np.array(sizes, np.int64)


def ncd(own: Sizes, pairs: Sizes, targets: Sizes) -> Floats:
    """Normalised compression distance, from sizes.

    Args:
        own: int64[n], C(x).
        pairs: int64[n, T], C(x ⊕ t).
        targets: int64[T], C(t).

    Returns:
        float64[n, T].
    """
    x = own[:, None]
    return (pairs - np.minimum(x, targets)) / np.maximum(x, targets)


class _Best:
    """The k best of a stream, by score, then by position. O(k) memory."""

    def __init__(self, k: int) -> None:
        self._k = k
        self.seen = 0
        self.indices = np.empty(0, np.int64)
        self.scores = np.empty(0)

    def offer(self, indices: npt.NDArray[np.int64], scores: Floats) -> None:
        self.seen += len(scores)
        if len(self.scores) == self._k:
            promising = scores >= self.scores[-1]
            indices, scores = indices[promising], scores[promising]
        indices, scores = np.append(self.indices, indices), np.append(self.scores, scores)
        order = np.lexsort((indices, -scores))[: self._k]
        self.indices, self.scores = indices[order], scores[order]
