"""What a long run drifts by."""

from collections.abc import Callable
from types import ModuleType

Script = Callable[[str], ModuleType]


def test_drift_is_the_last_quarter_over_the_second(script: Script) -> None:
    drifts = script("swap.endurance").drifts
    looks = [
        {"swaps": i, "requests": i, "rss": value} for i, value in enumerate([50, 90, 100, 100, 100, 100, 110, 110])
    ]
    assert drifts(looks) == {"rss": (100, 110, 110 / 100 - 1)}
    assert drifts(looks[:1])["rss"] == (50, 50, 0.0)


def test_what_was_nothing_has_no_ratio(script: Script) -> None:
    assert script("swap.endurance").drifts([{"swaps": 1, "requests": 1, "fds": 0}])["fds"] == (0, 0, 0.0)
