"""Kernels of InfoBatch: compiled loops on the host, and tensor operations on any device."""
