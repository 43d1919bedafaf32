"""The peers as the benchmark loads them, and steps of one small layer for them."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.kernels.check import Reference
from benchmarks.kernels.contender import Contender
from benchmarks.kernels.problem import BypassProblem, Scenario, Shape, make_problem
from benchmarks.kernels.roster import load_peers
from peftserve.kernels.bypass.layout import Group

FOLDER = Path(__file__).parents[3] / "benchmarks" / "peers"
SHAPE = Shape(1, (Group(64, (96, 32)),))
STEPS = [
    Scenario("decode", 1, (8,)),
    Scenario("decode", 5, (8, 16)),
    Scenario("decode", 20, (8, 16, 32)),
    Scenario("prefill", 70, (8, 64)),
]


class Peers:
    """contenders: by name. module: one of the folder's own modules, as its files import each other."""

    def __init__(self) -> None:
        self.contenders: dict[str, Contender] = {peer.name: peer for peer in load_peers(FOLDER)}

    def module(self, name: str) -> ModuleType:
        return import_module(f"{type(self.contenders['peft']).__module__.rpartition('.')[0]}.{name}")

    def contender(self, name: str) -> Contender:
        """vLLM and SGLang are there for whoever unpacked them: 300 MB are not downloaded for a test."""
        if name not in self.contenders:
            pytest.skip("needs what `python -m benchmarks.peers.wheels` unpacks, and Triton's interpreter")
        return self.contenders[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.cpu_only("it interprets the peers' kernels"))


@pytest.fixture(scope="session")
def peers() -> Peers:
    return Peers()


@pytest.fixture(params=STEPS, ids=lambda s: f"{s.phase} {s.tokens} {s.ranks}")
def scenario(request: pytest.FixtureRequest) -> Scenario:
    found: Scenario = request.param
    return found


def problem_of(scenario: Scenario, dtype: torch.dtype, *, join: bool = True) -> BypassProblem:
    return make_problem(scenario, SHAPE, layers=1, dtype=dtype, device="cpu", join=join)


def check(peer: Contender, problem: BypassProblem) -> None:
    reference = Reference(problem)
    run = peer.prepare(problem)
    assert run is not None
    assert reference.error(run) < reference.tolerance / 4


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """This module, for tests: nothing here is on sys.path."""
    return sys.modules[__name__]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own, where kernels can run in it. Its loads and stores refuse masks that are not exactly of booleans."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU the benchmark itself checks every peer")
    builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        monkeypatch.setattr(builder, name, _with_boolean_mask(getattr(builder, name), place))


def _with_boolean_mask(method, place):  # type: ignore[no-untyped-def]
    def call(self, *handles):  # type: ignore[no-untyped-def]
        handles[place].data = handles[place].data.astype(bool)
        return method(self, *handles)

    return call
