"""What all kernels share: the memory that a step goes over in, CUDA graphs, how much of a device a program takes."""
