from collections.abc import Callable
from types import ModuleType

import pytest


def test_it_says_what_ran(script: Callable[[str], ModuleType]) -> None:
    machine = script("machine").machine()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine.keys() >= {"python", "torch", "peftserve"}


def test_a_device_has_a_name_and_threads(script: Callable[[str], ModuleType]) -> None:
    found = script("machine").machine_of("cpu")
    assert found["device"] == found["cpu"]
    assert found["threads"] >= 1


def test_of_the_flags_it_names_those_that_products_depend_on(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("machine")
    text = (
        "processor : 0\nmodel name : Some CPU\nflags : fpu sse avx2 fma lahf_lm amx_bf16 avx512f f16c\n\nprocessor : 1"
    )
    monkeypatch.setattr(module.Path, "read_text", lambda path: text)
    monkeypatch.setattr(module, "PACKAGES", ())  # whose versions are read from files
    machine = module.machine()
    assert (machine["cpu"], machine["cpu_flags"]) == ("Some CPU", "amx_bf16 avx2 avx512f f16c fma")
