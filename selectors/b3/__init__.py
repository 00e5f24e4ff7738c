"""B3: batches of hard negatives (Thirukovalluru et al. 2025, arXiv 2505.11293)."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.selectors.b3.batches import Grouping as Grouping
    from curation.selectors.b3.communities import Communities as Communities
    from curation.selectors.b3.communities import find_communities as find_communities
    from curation.selectors.b3.conflicts import conflict_columns as conflict_columns
    from curation.selectors.b3.method import B3 as B3
    from curation.selectors.b3.method import pair_ids as pair_ids
    from curation.selectors.b3.method import text_ids as text_ids
    from curation.selectors.b3.quality import PlanQuality as PlanQuality
    from curation.selectors.b3.quality import plan_quality as plan_quality
    from curation.selectors.b3.quality import random_plan as random_plan
    from curation.selectors.b3.ranking import RankWindow as RankWindow
    from curation.selectors.b3.ranking import rank_window as rank_window

__all__ = [
    "B3",
    "Communities",
    "Grouping",
    "PlanQuality",
    "RankWindow",
    "conflict_columns",
    "find_communities",
    "pair_ids",
    "plan_quality",
    "random_plan",
    "rank_window",
    "text_ids",
]

__getattr__ = face(
    __name__,
    {
        "B3": "method",
        "Communities": "communities",
        "Grouping": "batches",
        "PlanQuality": "quality",
        "RankWindow": "ranking",
        "conflict_columns": "conflicts",
        "find_communities": "communities",
        "pair_ids": "method",
        "plan_quality": "quality",
        "random_plan": "quality",
        "rank_window": "ranking",
        "text_ids": "method",
    },
)
