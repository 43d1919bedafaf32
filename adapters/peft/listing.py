"""Bounded lists for messages."""

from collections.abc import Sequence

SHOWN = 5


def listed(names: Sequence[str]) -> str:
    """Join the first five names, and say how many there are if there are more."""
    shown = ", ".join(name[:200] for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... ({len(names)} in all)"
