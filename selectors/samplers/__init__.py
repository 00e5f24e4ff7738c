"""Samplers that put the methods into a ``torch.utils.data.DataLoader``, as its ``batch_sampler``."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.selectors.samplers.acquisition import AcquisitionSampler as AcquisitionSampler
    from curation.selectors.samplers.base import Indexed as Indexed
    from curation.selectors.samplers.base import ResumableSampler as ResumableSampler
    from curation.selectors.samplers.importance import ImportanceSampler as ImportanceSampler
    from curation.selectors.samplers.infobatch import InfoBatchSampler as InfoBatchSampler
    from curation.selectors.samplers.jest import JESTBatchSampler as JESTBatchSampler
    from curation.selectors.samplers.loader import InfoBatchLoader as InfoBatchLoader
    from curation.selectors.samplers.plan import PlanBatchSampler as PlanBatchSampler

_HOME = {
    "AcquisitionSampler": "acquisition",
    "ImportanceSampler": "importance",
    "Indexed": "base",
    "InfoBatchLoader": "loader",
    "InfoBatchSampler": "infobatch",
    "JESTBatchSampler": "jest",
    "PlanBatchSampler": "plan",
    "ResumableSampler": "base",
}

__all__ = [
    "AcquisitionSampler",
    "ImportanceSampler",
    "Indexed",
    "InfoBatchLoader",
    "InfoBatchSampler",
    "JESTBatchSampler",
    "PlanBatchSampler",
    "ResumableSampler",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
