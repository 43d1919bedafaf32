"""Shared by all kernels: the memory in which a step is sent, CUDA graphs, how much of a device a program takes."""
