"""What every test may use: the kit in tests/oracle, and the option `--device cuda` for a machine with a GPU."""

import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Unless tests are for a GPU, no test sees one, and Triton's kernels are tested in its interpreter. Triton looks at this
# when it is first imported, which transformers does too, so no later place would do, and pytest has not read its
# options yet. A worker of pytest-xdist has no options, and these variables from whoever started it.
given = [*sys.argv, *os.environ.get("PYTEST_ADDOPTS", "").split()]
if not {"cuda", "--device=cuda"} & {*given} and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Or else torch's compiler first compiles programs that try the processor's vectors, for longer than a tiny model takes.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# Every engine has a state folder of its own, where it would find nothing compiled. Whoever makes the folder removes it:
# servers and workers of pytest-xdist are given it.
inductor_cache = None if "TORCHINDUCTOR_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="inductor-")
if inductor_cache is not None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor_cache


# Nothing that is imported while tests are collected is ever garbage: to search it is a quarter of that time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is never collected, native libraries report as leaks
    if inductor_cache is not None:
        shutil.rmtree(inductor_cache, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where kernels, engines and samplers run (default: cpu)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only(why): what it tests is for a CPU; left out with --device cuda")
    config.addinivalue_line("markers", "slow: all its cases take more than 5 s; left out of `make test-fast`")
    _settle_hypothesis()


def _settle_hypothesis() -> None:
    """Try the same examples in every run; others with `--hypothesis-profile=search`.

    None fails by the clock: a busy machine stops a process for longer than the 200 ms that are usual.
    """
    from hypothesis import HealthCheck, settings  # before tests that take their settings from it are imported

    untimed: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("search", **untimed)
    settings.register_profile("same", derandomize=True, **untimed)
    settings.load_profile("same")


@pytest.hookimpl(trylast=True)  # behind what folders say of their tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _begin_with_long_files(items)
    if config.getoption("--device") == "cuda":
        _leave_out_what_a_gpu_cannot(items)


def _begin_with_long_files(items: list[pytest.Item]) -> None:
    """Sort files by how many slow tests they have, so that no worker waits for the other's last, long file."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def _leave_out_what_a_gpu_cannot(items: list[pytest.Item]) -> None:
    import torch  # not for those who need none of it

    gpu = torch.cuda.is_available()
    for item in items:
        marker = item.get_closest_marker("cpu_only")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"not with --device cuda: {marker.args[0]}"))
        elif not gpu:
            item.add_marker(pytest.mark.skip(reason="--device cuda: torch sees no GPU"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    return name


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """Import the package in tests/oracle, which takes seconds, for those tests that ask for it."""
    return _load("oracle", Path(__file__).with_name("oracle") / "__init__.py")


@pytest.fixture
def simulated_cuda(device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a `SimulatedCuda`, CUDA graphs on the CPU, in the place of torch.cuda's until the test ends."""
    if device == "cuda":
        pytest.skip("not with --device cuda: it simulates one")
    cuda = _load("simulated_cuda", Path(__file__).with_name("simulated_cuda.py")).SimulatedCuda()
    cuda.install(monkeypatch)
    return cuda


@pytest.fixture(scope="session")
def quick_interpreter() -> Iterator[None]:
    """Skip a step of Triton's interpreter that takes a third of its time.

    It patches the language anew for each function that a kernel calls. Ours need no more than what the launch of their
    kernel has patched.
    """
    from triton.runtime.interpreter import InterpretedFunction  # not for those who need none of it

    call = InterpretedFunction.__call__

    def quick(self: Any, *args: Any, **options: Any) -> Any:
        if self.fn.__module__.startswith("peftserve."):
            return self.rewrite()(*args, **options)
        return call(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", quick)
        yield


def _load(name: str, path: Path) -> ModuleType:
    """Import a module or a package from its path, since tests are not on sys.path."""
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
