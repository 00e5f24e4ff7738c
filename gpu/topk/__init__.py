"""The k largest of a long list, with or without Gumbel noise. Loaded on first use: device paths run without numba."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.gpu.topk.largest import Top as Top
    from curation.gpu.topk.largest import best as best
    from curation.gpu.topk.largest import gumbel_keys as gumbel_keys
    from curation.gpu.topk.largest import gumbel_topk as gumbel_topk
    from curation.gpu.topk.largest import keys_of as keys_of
    from curation.gpu.topk.largest import merge_topk as merge_topk
    from curation.gpu.topk.largest import topk as topk
    from curation.gpu.topk.order import descending_order as descending_order
    from curation.gpu.topk.order import descending_ranks as descending_ranks

__all__ = [
    "Top",
    "best",
    "descending_order",
    "descending_ranks",
    "gumbel_keys",
    "gumbel_topk",
    "keys_of",
    "merge_topk",
    "topk",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from curation.gpu.topk import largest, order

        return getattr(order if name.startswith("descending") else largest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
