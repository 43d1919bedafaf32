"""Undocumented parts of other libraries that the API uses, one module a library.

A library may change them without saying so. Each module lists them in `NAMES`, with what they are for and what replaces
them; it must not know anything of ours.
"""
