"""Paged attention by two kernels: long spans by those of torch, the rest by ours."""
