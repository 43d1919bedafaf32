"""What the kernels use of other libraries that those may change without saying so, one module a library.

Each module lists the names in `NAMES`, with what they are for and what is left without them.
"""
