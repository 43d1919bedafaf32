"""Modules that stand in for what the peers' kernels import and do not need, so that their own files run untouched.

vLLM and SGLang import the whole server at the top. An entry in `sys.modules` made here comes before that; what has a
path is looked up in the unpacked files as usual.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import torch


def can_run_triton() -> bool:
    """Return whether there is a GPU, or Triton's interpreter, which tests ask for."""
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def stand_in(name: str, path: Path | None = None, **attributes: object) -> ModuleType:
    """Make a module of this name; with a path, a package whose other modules are the files there."""
    module = sys.modules[name] = ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    vars(module).update(attributes)
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
    return module


def packages(top: Path, *names: str) -> None:
    """Make empty packages over the unpacked folders, whose own `__init__` would import the server."""
    for name in names:
        stand_in(name, top.parent.joinpath(*name.split(".")))


class Unset:
    """Settings of which none is set, each with a function `get`."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(get=lambda: None)


def ignore(*_: object, **__: object) -> None:
    """Do nothing, instead of a function whose effect the kernels do not need."""


def device_name(*_: object) -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def undecorated(*_: object, **__: object) -> Callable[[Any], Any]:
    """Return a decorator that leaves things as they are."""
    return lambda decorated: decorated


def stand_in_for_missing() -> None:
    """Make stand-ins for pydantic and msgspec where a machine lacks them, as far as SGLang's plans and routes go."""
    if not find_spec("msgspec"):
        stand_in("msgspec", Struct=_Struct)
    if not find_spec("pydantic"):
        stand_in_for_pydantic()


def stand_in_for_pydantic() -> None:
    def field(default_factory: Callable[[], Any]) -> Any:
        return dataclasses.field(default_factory=default_factory)

    stand_in("pydantic", BaseModel=_Model, ConfigDict=dict, Field=field, model_validator=undecorated)


class _Struct:
    def __init_subclass__(cls, **options: bool) -> None:
        dataclasses.dataclass(**options)(cls)  # type: ignore[call-overload]


class _Model:
    """A dataclass that is made from JSON: lists, enumerations and models within it too. Checks nothing."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(kw_only=True)(cls)

    @classmethod
    def model_validate(cls, data: dict[str, Any]) -> Any:
        hints = get_type_hints(cls)
        return cls(**{name: _as(hints[name], value) for name, value in data.items()})

    def model_dump(self) -> dict[str, Any]:
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return fields


def _as(hint: Any, value: Any) -> Any:
    if get_origin(hint) is list:
        return [_as(get_args(hint)[0], item) for item in value]
    for kind in (hint, *get_args(hint)):  # one of a union's
        if isinstance(kind, type) and value is not None:
            if issubclass(kind, _Model):
                return kind.model_validate(value)
            if issubclass(kind, Enum):
                return kind(value)
    return value
