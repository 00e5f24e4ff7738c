"""Datasets: what a run leaves behind, read, checked and written."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.dataset.reader import Dataset as Dataset

__all__ = ["Dataset"]

__getattr__ = face(__name__, {"Dataset": "reader"})
