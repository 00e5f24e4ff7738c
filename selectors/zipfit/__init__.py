"""ZIP-FIT: texts that compress well together with a target (Obbad et al. 2024, arXiv 2410.18194)."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.selectors.zipfit.method import ZipFit as ZipFit

__all__ = [
    "ZipFit",
]

__getattr__ = face(
    __name__,
    {
        "ZipFit": "method",
    },
)
