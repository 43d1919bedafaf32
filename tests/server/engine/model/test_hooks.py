"""What the hooks do at the sites of a real model."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.layout import Rows
from peftserve.kernels.side import SideOps
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.hooks import BypassHooks
from peftserve.server.engine.model.loading import LoadedModel, load_model


class CountingBackend:
    """Adds 1 to each output; counts the shrinks of each group."""

    def __init__(self) -> None:
        self.shrinks: list[tuple[int, tuple[int, ...]]] = []
        self.expanded: list[tuple[int, int]] = []

    def shrink(self, group: int, x: torch.Tensor) -> Any:
        self.shrinks.append((group, tuple(x.shape)))
        return None if group == 0 else group

    def expand_(self, shrunk: int, position: int, y: torch.Tensor) -> None:
        assert y.dim() == 2
        self.expanded.append((shrunk, position))
        y += 1


@pytest.fixture
def hooked(oracle: ModuleType, tmp_path: Path) -> tuple[LoadedModel, CountingBackend, BypassHooks]:
    loaded = load_model(EngineConfig(model=str(oracle.tiny_model("qwen2", 0, tmp_path)), device="cpu"))
    backend = CountingBackend()
    return loaded, backend, _hooks(loaded, backend)


def _hooks(loaded: LoadedModel, backend: Any) -> BypassHooks:
    modules = dict(loaded.model.named_modules())
    return BypassHooks(modules, loaded.sites.groups, backend, SideOps(loaded.sites.rows()))


def run(loaded: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        loaded.attention.shapes.clear()
        ids = torch.arange(5)[None]
        logits: torch.Tensor = loaded.model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=2).logits
    return logits


def test_hooks_do_nothing_unless_the_step_has_adapters(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    plain = run(loaded)
    assert not backend.shrinks
    hooks.begin(True)
    assert not torch.allclose(run(loaded), plain)
    hooks.end()
    hooks.begin(False)
    assert torch.equal(run(loaded), plain)


def test_one_shrink_serves_a_group_and_each_site_its_own_expand(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    hooks.begin(True)
    run(loaded)
    groups, places = loaded.sites.groups.groups, loaded.sites.groups.places
    assert sorted(group for group, _ in backend.shrinks) == list(range(len(groups)))
    assert sorted(backend.expanded) == sorted(place for place in places.values() if place[0] != 0)
    for group, shape in backend.shrinks:
        rows = 2 if groups[group].rows is Rows.LOGITS else 5
        assert shape == ((rows,) if groups[group].gather else (rows, groups[group].in_features))


def test_every_step_shrinks_anew_and_keeps_no_input(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    hooks.begin(True)
    run(loaded)
    first = len(backend.shrinks)
    run(loaded)
    assert len(backend.shrinks) == 2 * first
    hooks.end()
    assert all(group._input is None for group in hooks._groups)
