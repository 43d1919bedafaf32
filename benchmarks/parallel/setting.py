"""What the commands of this room share: the kit of the tests, and models of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

KIT = Path(__file__).resolve().parents[2] / "tests" / "oracle" / "__init__.py"


def oracle() -> ModuleType:
    """Import the package in tests/oracle: tiny models, adapters of every method, and PEFT's answers."""
    spec = importlib.util.spec_from_file_location("oracle", KIT, submodule_search_locations=[str(KIT.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["oracle"] = module
    spec.loader.exec_module(module)
    return module
