"""JEST: joint example selection (Evans et al. 2024, arXiv 2406.17711)."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.selectors.jest.method import JEST as JEST
    from curation.selectors.jest.reference import EmbeddingCache as EmbeddingCache

__all__ = [
    "JEST",
    "EmbeddingCache",
]

__getattr__ = face(
    __name__,
    {
        "EmbeddingCache": "reference",
        "JEST": "method",
    },
)
