from collections.abc import Callable
from types import ModuleType

import pytest


def test_a_contestant_that_cannot_be_made_is_named(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> Callable[[], None]:
        raise TypeError("unexpected keyword argument 'pdl'")

    found = script("kernels.overlap").ready({"a": lambda: print, "b": gone, "c": lambda: print})
    assert list(found) == ["a", "c"]
    assert capsys.readouterr().out == "  without b: TypeError: unexpected keyword argument 'pdl'\n"
