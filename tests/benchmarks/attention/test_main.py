"""Who is measured: whoever runs a step and gives what it should, whatever becomes of the others."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from peftserve.kernels.attention.reference import naive_attend


@pytest.fixture
def attention(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("attention.main")

    def right(problem: Any) -> Any:
        return lambda i: naive_attend(problem.spans, problem.layer, problem.query, problem.keys[i], problem.values[i])

    def unknown(problem: Any) -> Any:
        def attend(i: int) -> Any:
            raise TypeError("varlen_attn() got an unexpected keyword argument 'enable_gqa'")

        return attend

    contestants = {
        "ours": right,
        "unknown": unknown,
        "wrong": lambda problem: lambda i: 2 * right(problem)(i),
        "not for this": lambda problem: None,
        "another": right,
    }
    monkeypatch.setattr(module, "CONTESTANTS", contestants)
    monkeypatch.setattr(module, "SMALL_STEPS", {"2 decodes": [(1, 20)] * 2, "a prefill": [(5, 3)]})
    return module


def test_a_contestant_that_fails_is_named_and_the_others_go_on(
    attention: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    found = attention.check("cpu")
    assert [list(step) for step in found] == [["ours", "another"]] * 2
    assert attention.status(found) == 0
    said = capsys.readouterr().out
    assert "2 decodes: right are ours, another" in said
    assert said.count("without unknown: TypeError: varlen_attn() got an unexpected keyword argument") == 2
    assert said.count("without wrong: AssertionError: it is wrong by 1.0e+00") == 2
    assert "not for this" not in said


def test_it_fails_in_the_end_if_ours_did(attention: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.CONTESTANTS, "ours", attention.CONTESTANTS["unknown"])
    found = attention.check("cpu")
    assert [list(step) for step in found] == [["another"]] * 2
    assert attention.status(found) == 1


def test_ours_and_flash_kernels_rehearse_on_a_cpu(script: Callable[[str], ModuleType], capsys: Any) -> None:
    """Decodes with the write inside and before, prefills on flash kernels for which SDPA stands in."""
    found = script("attention.main").check("cpu")
    names = [set(step) for step in found]
    assert names[0] == {"ours", "written first", "SDPA, gathered"}
    assert names[1] == {"ours", "with flash", "SDPA, gathered"}
    assert names[2] == {"ours", "with flash"}
    assert "without" not in capsys.readouterr().out
