"""What the hooks do at the sites of a real model."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.bypass.layout import RowSet
from peftserve.kernels.ops.side import SideOps
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.hooks import BypassHooks
from peftserve.server.engine.model.loading import LoadedModel, load_model


class CountingBackend:
    """Adds 1 to each output of all groups but the first; keeps each call's group, input and sites."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], list[int]]] = []

    def lead_in(self) -> None: ...

    def start(self, group: int, x: torch.Tensor) -> None: ...

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        there = [position for position, y in enumerate(outputs) if y is not None]
        self.calls.append((group, tuple(x.shape), there))
        for y in outputs:
            if y is not None and group:
                assert y.dim() == 2
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
        loaded.attention.layers.clear()
        ids = torch.arange(5)[None]
        logits: torch.Tensor = loaded.model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=2).logits
    return logits


def test_hooks_do_nothing_unless_the_step_has_adapters(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    plain = run(loaded)
    assert not backend.calls
    hooks.begin(True)
    assert not torch.allclose(run(loaded), plain)
    hooks.end()
    hooks.begin(False)
    assert torch.equal(run(loaded), plain)


def test_one_call_serves_all_sites_of_a_group(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    hooks.begin(True)
    run(loaded)
    groups = loaded.sites.groups.groups
    assert sorted(group for group, *_ in backend.calls) == list(range(len(groups)))
    for group, shape, there in backend.calls:
        rows = 2 if groups[group].rows is RowSet.LOGITS else 5
        assert shape == ((rows,) if groups[group].gather else (rows, groups[group].in_features))
        assert there == list(range(len(groups[group].out_features)))


def test_a_module_called_again_on_the_same_input_is_run_again(hooked: Any) -> None:
    """Whoever had the first output may have changed it."""
    loaded, backend, hooks = hooked
    q, k = (loaded.model.model.layers[0].self_attn.get_submodule(name) for name in ("q_proj", "k_proj"))
    x = torch.randn(1, 3, q.in_features)
    with torch.inference_mode():
        hooks.begin(True)
        first, second, other = q(x), q(x), k(x)
        first.zero_()
        assert torch.allclose(second, q(x))
        hooks.end()
        hooks.begin(False)
        assert torch.allclose(second, q(x) + 1)
        assert torch.allclose(other, k(x) + 1)
    assert [there for *_, there in backend.calls] == [[0, 1, 2], [0], [0]]


def test_every_step_runs_anew_and_keeps_no_input(hooked: Any) -> None:
    loaded, backend, hooks = hooked
    hooks.begin(True)
    run(loaded)
    first = len(backend.calls)
    run(loaded)
    assert len(backend.calls) == 2 * first
    hooks.end()
    assert all(group._input is None and not any(group._outputs) for group in hooks._groups)
