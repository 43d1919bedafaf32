"""The plain loop as a contender: at each linear, for each adapter, two products on the adapter's rows."""

from .contender import Run
from .steps import Step


class Loop:
    name = "loop"
    version = ""

    def prepare(self, step: Step) -> Run:
        segments = step.scenario.segments

        def run() -> None:
            for index, x, outputs in step.calls():
                for position, y in enumerate(outputs):
                    for slot, _, start, end in segments:
                        adapter = step.adapters[slot]
                        a = adapter.a[index][position * adapter.rank :][: adapter.rank]
                        y[start:end].addmm_(x[start:end] @ a.t(), adapter.b[index][position])

        return run
