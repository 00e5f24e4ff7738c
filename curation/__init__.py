"""Data curation and batch selection for people who train models.

The names below load on first use, so that ``import curation`` costs a few milliseconds: a data-loader
worker does it thousands of times a day.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    # A checkout: gpu/, selectors/, pipelines/ and service/ stand beside this folder (see pyproject.toml).
    __path__.append(str(_root))

if TYPE_CHECKING:
    from curation.dataset import Dataset as Dataset
    from curation.pair import Pair as Pair
    from curation.plan import BatchPlan as BatchPlan
    from curation.selection import Selection as Selection
    from curation.selectors.acquisition import StochasticAcquisition as StochasticAcquisition
    from curation.selectors.b3 import B3 as B3
    from curation.selectors.infobatch import InfoBatch as InfoBatch
    from curation.selectors.jest import JEST as JEST
    from curation.selectors.zipfit import ZipFit as ZipFit

_HOME = {
    "B3": "curation.selectors.b3.method",
    "BatchPlan": "curation.plan",
    "Dataset": "curation.dataset.reader",
    "InfoBatch": "curation.selectors.infobatch.method",
    "JEST": "curation.selectors.jest.method",
    "Pair": "curation.pair",
    "Selection": "curation.selection",
    "StochasticAcquisition": "curation.selectors.acquisition",
    "ZipFit": "curation.selectors.zipfit.method",
}

__all__ = [
    "B3",
    "JEST",
    "BatchPlan",
    "Dataset",
    "InfoBatch",
    "Pair",
    "Selection",
    "StochasticAcquisition",
    "ZipFit",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'curation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
