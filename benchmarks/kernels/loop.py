"""The plain loop as a contender: at each linear, for each adapter, two products on the adapter's rows."""

from .contender import Run
from .problem import BypassProblem


class Loop:
    name = "loop"
    version = ""

    def prepare(self, problem: BypassProblem) -> Run:
        segments = problem.scenario.segments

        def run() -> None:
            for index, x, outputs in problem.calls():
                for position, y in enumerate(outputs):
                    for slot, _, start, end in segments:
                        adapter = problem.adapters[slot]
                        a = adapter.a[index][position * adapter.rank :][: adapter.rank]
                        y[start:end].addmm_(x[start:end] @ a.t(), adapter.b[index][position])

        return run
