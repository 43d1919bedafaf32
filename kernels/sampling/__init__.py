"""Kernels that choose tokens."""
