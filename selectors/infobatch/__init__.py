"""InfoBatch: unbiased dynamic pruning (Qin et al. 2023, arXiv 2303.04947)."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.selectors.infobatch.method import InfoBatch as InfoBatch
    from curation.selectors.infobatch.schedule import by_progress as by_progress
    from curation.selectors.infobatch.schedule import cosine as cosine
    from curation.selectors.infobatch.schedule import one_cycle as one_cycle

__all__ = [
    "InfoBatch",
    "by_progress",
    "cosine",
    "one_cycle",
]

__getattr__ = face(
    __name__,
    {
        "InfoBatch": "method",
        "by_progress": "schedule",
        "cosine": "schedule",
        "one_cycle": "schedule",
    },
)
