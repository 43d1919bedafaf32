import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peftserve.kernels.bypass.cpp import loading
from peftserve.kernels.bypass.cpp.compiler import CannotCompile
from peftserve.kernels.bypass.cpp.loading import ELEMENTS, agrees, load_loop


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Load everything anew in the test, and forget it afterwards."""
    load_loop.cache_clear()
    yield
    load_loop.cache_clear()


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_there_is_a_loop_for_each_type_and_it_agrees(dtype: torch.dtype) -> None:
    loop = load_loop(dtype)
    assert loop is not None
    assert agrees(loop, dtype)
    assert load_loop(dtype) is loop


def test_a_type_that_the_loop_is_not_for() -> None:
    assert load_loop(torch.float64) is None


def test_where_nothing_can_be_compiled_the_log_says_so_once(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(element: str) -> Path:
        raise CannotCompile("there is no C++ compiler")

    monkeypatch.setattr(loading, "compiled", fail)
    with caplog.at_level(logging.WARNING):
        assert [load_loop(torch.float32) for _ in range(2)] == [None, None]
    assert [record.message for record in caplog.records] == [
        "the bypasses of adapters run in torch's operators, which is slower: there is no C++ compiler"
    ]


def test_a_loop_that_adds_something_else_does_not_serve(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That of another type is one."""
    compiled = loading.compiled
    monkeypatch.setattr(loading, "compiled", lambda element: compiled("float16"))
    with caplog.at_level(logging.WARNING):
        assert load_loop(torch.bfloat16) is None
    assert "gives other results" in caplog.text


def test_a_library_that_is_none_does_not_serve(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.so").write_text("nothing")
    monkeypatch.setattr(loading, "compiled", lambda element: tmp_path / "broken.so")
    with caplog.at_level(logging.WARNING):
        assert load_loop(torch.float32) is None
    assert len(caplog.records) == 1


def test_the_threads_are_those_of_torch() -> None:
    """The library is linked with no OpenMP runtime: it is handed the functions of the one that is there."""
    assert b"gomp" not in loading.compiled("float").read_bytes()
    loop = load_loop(torch.float32)
    assert loop is not None
    assert all(loop._team)
