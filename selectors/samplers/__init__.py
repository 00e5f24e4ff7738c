"""Samplers that put the methods into a ``torch.utils.data.DataLoader``, as its ``batch_sampler``."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.selectors.samplers.acquisition import AcquisitionSampler as AcquisitionSampler
    from curation.selectors.samplers.base import Indexed as Indexed
    from curation.selectors.samplers.base import ResumableSampler as ResumableSampler
    from curation.selectors.samplers.importance import ImportanceSampler as ImportanceSampler
    from curation.selectors.samplers.infobatch import InfoBatchSampler as InfoBatchSampler
    from curation.selectors.samplers.jest import JESTBatchSampler as JESTBatchSampler
    from curation.selectors.samplers.loader import InfoBatchLoader as InfoBatchLoader
    from curation.selectors.samplers.plan import PlanBatchSampler as PlanBatchSampler
    from curation.selectors.samplers.random import RandomBatchSampler as RandomBatchSampler

_HOMES = {
    "AcquisitionSampler": "acquisition",
    "ImportanceSampler": "importance",
    "Indexed": "base",
    "InfoBatchLoader": "loader",
    "InfoBatchSampler": "infobatch",
    "JESTBatchSampler": "jest",
    "PlanBatchSampler": "plan",
    "RandomBatchSampler": "random",
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
    "RandomBatchSampler",
    "ResumableSampler",
]

__getattr__ = face(__name__, _HOMES)
