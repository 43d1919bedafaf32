import pytest

from peftserve.server.diagnosis.machine import look


def test_a_cpu_has_memory_and_perhaps_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    here = look("cpu")
    assert (here.device, here.has_device, here.name) == ("cpu", True, "")
    assert here.free > 0
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert look("cpu").compiler is None
