"""Parts of other libraries that may change without notice and that adapters/ uses, one module a library.

Each module lists the names in `NAMES`, with what they are for and what would replace them.
"""
