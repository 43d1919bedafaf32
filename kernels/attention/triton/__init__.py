"""Paged attention in Triton, for GPUs."""
