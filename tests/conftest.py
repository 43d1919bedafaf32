"""Fixtures of every test: the kit in tests/oracle."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The package in tests/oracle. Loaded from its path, since tests are not on sys.path, and only when asked for."""
    folder = Path(__file__).with_name("oracle")
    spec = importlib.util.spec_from_file_location(
        "oracle", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    module = sys.modules["oracle"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
