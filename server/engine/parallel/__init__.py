"""Tensor parallel: the base divided among processes, one for each rank, that take every step together."""
