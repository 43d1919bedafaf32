"""What every test may use: the kit in tests/oracle, and the option `--device cuda` for a machine with a GPU."""

import gc
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Without a GPU, Triton's kernels are tested in its interpreter. Triton looks at this when it is first imported, which
# transformers does too, so no later place would do. Nothing but those tests runs a Triton kernel there.
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Or else torch's compiler first compiles programs that try the processor's vectors, for longer than a tiny model takes.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


# Nothing that is imported while tests are collected is ever garbage: to search it is a quarter of that time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is never collected, native libraries report as leaks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where engines and samplers run")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    return name


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The package in tests/oracle, only when asked for."""
    return _load("oracle", Path(__file__).with_name("oracle") / "__init__.py")


@pytest.fixture
def simulated_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA graphs on the CPU: a `SimulatedCuda`, in the place of torch.cuda's until the test ends."""
    cuda = _load("simulated_cuda", Path(__file__).with_name("simulated_cuda.py")).SimulatedCuda()
    cuda.install(monkeypatch)
    return cuda


def _load(name: str, path: Path) -> ModuleType:
    """From its path, since tests are not on sys.path."""
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
