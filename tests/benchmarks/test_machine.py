from collections.abc import Callable
from types import ModuleType


def test_it_says_what_ran(script: Callable[[str], ModuleType]) -> None:
    machine = script("machine").machine()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine.keys() >= {"python", "torch", "peftserve"}
