"""The routes, one file a family. Their paths have names with slashes in them, of a kind that is registered first."""

from . import name_paths

__all__ = ["name_paths"]
