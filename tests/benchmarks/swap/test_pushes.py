from pathlib import Path

import pytest

from benchmarks.swap import pushes
from benchmarks.swap.pushes import Pushed, growth, memory, report


@pytest.mark.slow
def test_a_trainers_pushes_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Against the demo, as a real server: each push answers the next request, and what it supersedes goes."""
    assert pushes.main(["--pushes", "12", "--clients", "2"]) == 0, capsys.readouterr().out
    assert "nothing grew" in capsys.readouterr().out


def test_growth_is_told() -> None:
    flat = [(number, 1000 << 20, 12) for number in range(10)]
    assert growth(Pushed(looks=flat)) == []
    assert growth(Pushed(looks=[*flat, (10, 1200 << 20, 12)])) == ["memory has grown from 1000 to 1200 MiB"]
    assert growth(Pushed(looks=[*flat, (10, 1000 << 20, 40)])) == ["there were 12 folders of adapters, and are 40"]


def test_the_report_has_the_figures() -> None:
    text = report(Pushed(seconds=[0.1, 0.2, 0.3], answers=7, looks=[(3, 5 << 20, 2)]))
    assert "3 pushes: median 200.0 ms" in text
    assert "7 requests" in text
    assert text.splitlines()[-1].split() == ["3", "5", "2"]


def test_memory_of_this_process_is_some(tmp_path: Path) -> None:
    assert memory({int(Path("/proc/self").readlink().name), 1 << 30}) > 1 << 20
