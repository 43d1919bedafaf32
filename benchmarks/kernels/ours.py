"""Our backend as a contender, with the factors where the step has them."""

from functools import partial

from peftserve.kernels.bypass.factory import make_bypass_backend
from peftserve.kernels.bypass.layout import BlobLayout, BypassBackend, GroupLayout

from .contender import Run
from .problem import Adapter, BypassProblem


class Ours:
    name = "ours"
    version = ""

    def prepare(self, problem: BypassProblem) -> Run:
        rows, slots = problem.scenario.tokens, len(problem.adapters)
        backend = make_bypass_backend(problem.arena, problem.groups, max_rows=rows, max_slots=slots)
        attach_all(backend, problem)
        return partial(add_all, backend, problem)


def attach_all(backend: BypassBackend, problem: BypassProblem) -> None:
    """Attach all adapters of the problem, and begin its step."""
    for slot, adapter in enumerate(problem.adapters):
        backend.attach(slot, backend.prepare(0, layout_of(adapter)))
    backend.begin(problem.scenario.segments, [])


def add_all(backend: BypassBackend, problem: BypassProblem) -> None:
    backend.lead_in()
    for index, x, outputs in problem.calls():
        backend.add_(index, x, outputs)


def layout_of(adapter: Adapter) -> BlobLayout:
    """Return where the adapter's factors lie, in elements from the start of the arena."""
    return {
        index: GroupLayout(int(a.storage_offset()), (adapter.rank,) * len(b), tuple(int(f.storage_offset()) for f in b))
        for index, (a, b) in enumerate(zip(adapter.a, adapter.b, strict=True))
    }
