"""Why nothing is merged."""


class MergeRefused(Exception):
    """A sentence for the person who asked: what cannot be merged, why, and what to do instead."""
