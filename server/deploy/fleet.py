"""The interface of what starts and ends replicas. `on_ray` implements it; tests bring their own."""

from typing import Protocol

from .dialer import Target


class FleetError(Exception):
    """The replicas cannot be started. The message is for the operator."""


class Fleet(Protocol):
    """The replicas of one server. All methods may wait, and are called on one thread after the other."""

    def open(self) -> str:
        """Connect to where replicas run. Returns the address of this machine that they can reach. Raises FleetError."""

    def start(self, target: Target) -> None:
        """Have replicas run that dial `target`, and return when they do. Raises FleetError."""

    def close(self) -> None:
        """End all replicas."""
