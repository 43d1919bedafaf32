"""Paged attention of two: long spans by torch's flash kernels, the rest by ours."""
