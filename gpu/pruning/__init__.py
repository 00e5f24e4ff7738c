"""An epoch of InfoBatch: compiled loops on the host, tensor operations on any device; and the codes of fates."""

DROPPED, KEPT, BAND = 0, 1, 2
"""A byte stands for an example's fate in an epoch: dropped, kept at weight 1, or ``BAND + b``: kept although its score
lies in band b, at that band's weight."""
