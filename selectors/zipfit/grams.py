"""4-grams: ZIP-FIT's estimate by those that texts share, from compressed sizes to terms of the alignment."""

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.ngrams import Grams, alignment_terms, target_grams
from curation.selectors.zipfit.texts import TextBlock

Floats = npt.NDArray[np.float64]


class GramTerms:
    """The two terms that alignment is nearly a weighted sum of; see :func:`curation.gpu.ngrams.alignment_terms`.

    Args:
        targets: the targets' texts as one block.
        sizes: int64[T], their compressed sizes.
        device: where the product is made.
    """

    def __init__(self, targets: TextBlock, sizes: npt.NDArray[np.int64], device: str) -> None:
        self._device = device
        self._sizes = torch.from_numpy(sizes).to(device)
        self._grams: Grams = target_grams(*self._packed(targets))

    def __call__(self, block: TextBlock, sizes: npt.NDArray[np.int64]) -> Floats:
        """float64[n, 2] of a block's texts, whose own compressed sizes are int64[n]."""
        own = torch.from_numpy(sizes).to(self._device)
        terms: Floats = alignment_terms(*self._packed(block), own, self._grams, self._sizes).cpu().numpy()
        return terms

    def _packed(self, block: TextBlock) -> tuple[torch.Tensor, torch.Tensor]:
        # Arrow's buffers are read only, of which torch warns; a slice's offsets may begin elsewhere.
        data = block.data[block.offsets[0] : block.offsets[-1]].copy()
        return tuple(torch.from_numpy(part).to(self._device) for part in (data, block.offsets - block.offsets[0]))  # type: ignore[return-value]
