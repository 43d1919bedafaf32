"""The interface of the kernel benchmark's contenders, ours and the peers."""

from collections.abc import Callable
from typing import Protocol

from .problem import BypassProblem

Run = Callable[[], None]


class Contender(Protocol):
    """A contender. name: its column in the table. version: of the package that it stands for; empty for ours."""

    name: str
    version: str

    def prepare(self, problem: BypassProblem) -> Run | None:
        """Return a function that adds the bypasses of all groups to the outputs `problem.y`, once per call.

            for each group i, site j and segment s:
                problem.y[i % n][j][s.start:s.end] += (x[i % n][s.start:s.end] Aᵀ) B,   n = problem.layer_groups

        What a server does once per step or per adapter (plans, metadata, copies of the factors in a layout of its own)
        is done here and not timed. On a GPU the function is captured in a CUDA graph: no synchronisation, no reads of
        device data by the host. None if the contender cannot run such a step.
        """
