import inspect
import re
from pathlib import Path

from peftserve.adapters.peft.compile import compiler_of
from peftserve.adapters.peft.config import MethodConfig
from peftserve.adapters.peft.fields import Fields
from peftserve.adapters.peft.methods import METHODS
from peftserve.adapters.peft.unsupported import UNSERVABLE

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods.md"


def test_every_method_has_a_compiler() -> None:
    for method in METHODS:
        compiler = compiler_of(MethodConfig(method, None, Fields({})))
        assert list(inspect.signature(compiler).parameters) == ["config", "checkpoint", "base"], method


def test_no_field_is_listed_twice() -> None:
    for name, method in METHODS.items():
        listed = [*method.reads.split(), *method.ignored.split(), *method.refused]
        assert sorted(set(listed)) == sorted(listed), name


def test_the_page_of_methods_names_every_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*METHODS, *UNSERVABLE) if not re.search(rf"\b{name}\b", text)] == []
