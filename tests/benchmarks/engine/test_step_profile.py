import time
from collections.abc import Callable
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]


def test_what_overlaps_is_busy_once_and_gaps_are_not(script: Script) -> None:
    profile = script("engine.step_profile")
    spans = [("b", 30.0, 40.0), ("a", 0.0, 10.0), ("a", 5.0, 20.0), ("c", 32.0, 34.0)]
    found = profile.summary([profile.Interval(*span) for span in spans], 2)
    assert found["launches"] == 2
    assert found["kernels_ms"] == pytest.approx(37 / 2e3, abs=1e-4)
    assert found["busy_ms"] == pytest.approx(30 / 2e3, abs=1e-4)
    assert found["span_ms"] == pytest.approx(40 / 2e3, abs=1e-4)
    assert found["busy"] == 0.75
    assert found["top"] == [["a", 0.0125, 1.0], ["b", 0.005, 0.5], ["c", 0.001, 0.5]]


def test_a_device_that_ran_nothing(script: Script) -> None:
    assert script("engine.step_profile").summary([], 1)["launches"] == 0


def test_timed_calls_are_there(script: Script) -> None:
    """Whoever renames one is told here, and not by a profile without it."""
    profile = script("engine.step_profile")
    for place in profile.TIMED_CALLS.values():
        owner, name = profile._owner(place)
        assert callable(getattr(owner, name)), place


def test_the_host_is_timed_by_call_and_left_as_it_was(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = script("engine.step_profile")

    class Engine:
        def step(self) -> None:
            time.sleep(0.002)
            self.wait()

        def wait(self) -> None:
            time.sleep(0.02)

    monkeypatch.setattr(profile, "Engine", Engine, raising=False)
    places = {
        "step": "benchmarks.engine.step_profile:Engine.step",
        "wait": "benchmarks.engine.step_profile:Engine.wait",
    }
    monkeypatch.setattr(profile, "TIMED_CALLS", places)
    before = Engine.step
    found = profile.host_profile(lambda: Engine().step(), 3)
    assert found.keys() == {"step", "wait", "host"}
    assert found["step"] == pytest.approx(found["wait"] + found["host"], abs=1e-3)
    assert min(found.values()) > 0
    assert Engine.step is before
    text = list(profile.lines(None, found))
    assert len(text) == 1
    assert ", wait " in text[0]
