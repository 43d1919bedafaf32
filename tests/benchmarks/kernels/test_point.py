from types import ModuleType

from benchmarks.kernels.ours import Ours
from benchmarks.kernels.point import measure
from benchmarks.kernels.roofline import Roofline


def test_only_those_that_are_right_are_timed(kit: ModuleType) -> None:
    contenders = [Ours(), kit.Named("other"), kit.Forgetful("wrong"), kit.Refusing("none"), kit.Failing("failing")]
    point = measure(kit.make(), contenders, Roofline(1e9, 1e9), "cpu", rounds=1)
    assert list(point.outcomes) == ["ours", "other", "wrong", "none", "failing"]
    assert {name for name, outcome in point.outcomes.items() if outcome.us} == {"ours", "other"}
    assert point.outcomes["wrong"].note.startswith("wrong: relative error")
    assert point.outcomes["failing"].note == "failed: RuntimeError: no such device"
    assert point.best_peer == ("other", point.outcomes["other"].us)
    assert (point.ranks, point.layers, point.adapters) == ("4-8", 2, 2)
    assert point.floor > 0
